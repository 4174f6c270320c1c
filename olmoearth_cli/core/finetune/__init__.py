"""Fine-tuning: an encoder and a head learn a user's labels together (spec/evaluation.md section 8)."""
