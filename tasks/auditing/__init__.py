"""Audits of the data: what a label, a file or a split gives away."""
