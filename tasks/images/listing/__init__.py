"""What a source lists: folders, tables and packages of images, their labels, splits and groups."""
