"""Sequences of different lengths without padding, for inference."""
