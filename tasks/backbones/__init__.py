"""Pretrained networks: catalogue, layer groups, engines that run the frozen part, source cards."""
