"""The model's life after training: its ONNX files, what was measured of them, and their use."""
