"""How far the data is from what the backbone knows, and how well its features serve the labels."""
