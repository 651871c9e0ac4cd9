"""Whether incoming images are still those that the exported model knows, look after look."""
