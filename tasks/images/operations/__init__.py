"""Operations on the pixels of a view, one module each, named like the range that turns it on."""
