"""Our numbers against those of the reference implementation."""
