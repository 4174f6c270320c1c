"""The parts of pretraining: what is trained, on which devices, what is kept and what is watched."""
