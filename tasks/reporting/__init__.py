"""What a person reads: figures, the html report, the model card, the exported model."""
