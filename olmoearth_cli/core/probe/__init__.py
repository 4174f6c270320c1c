"""How embeddings are judged: kNN, linear probe, metrics (spec/evaluation.md)."""
