"""Images on disk: sources, validation, duplicates, splits, decoding, augmentation, pixel store."""
