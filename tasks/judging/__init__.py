"""How good a model is, how sure that is, and whether one is better than another."""
