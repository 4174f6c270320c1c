"""Embedding maps on disk: what is written and read back. No torch."""
