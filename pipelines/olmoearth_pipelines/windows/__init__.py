"""Labelled windows: what fine-tuning learns from, cut out of the archive once and kept on disk."""
