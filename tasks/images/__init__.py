"""Images on disk: sources, decoding, validation, duplicates, splits, augmentation."""
