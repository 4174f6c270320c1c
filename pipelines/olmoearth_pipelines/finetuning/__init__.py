"""Fine-tuning as a run: data, epochs, sweep, resumption, baselines and the report."""
