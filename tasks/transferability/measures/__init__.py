"""Measures of what frozen features are worth for the labels, one module each."""
