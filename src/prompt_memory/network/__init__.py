"""Frozen transformers and networks whose weights are written down."""
