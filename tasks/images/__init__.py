"""Images on disk: sources, validation, duplicates, splits, decoding, augmentation and the packed pixel store."""
