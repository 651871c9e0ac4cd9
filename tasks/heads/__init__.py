"""Heads on pooled features: kinds, how they are fitted, and the classifier they end."""
