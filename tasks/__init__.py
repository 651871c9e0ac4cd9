"""Stages of the pipeline (verbs, one module each) and the parts they are made of (nouns, one folder each)."""
