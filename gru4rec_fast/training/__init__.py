"""Training: loop, schedules, checkpoints, early stopping, curves."""
