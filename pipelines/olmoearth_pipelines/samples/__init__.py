"""The pretraining dataset on disk, and batches from it (spec/pretraining.md sections 1 and 2)."""
