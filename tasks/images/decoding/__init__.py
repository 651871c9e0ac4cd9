"""From the bytes of a file to upright 8-bit sRGB, and to the square that a network sees."""
