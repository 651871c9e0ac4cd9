"""Arms trained side by side on a part of the images, before the decision between them."""
