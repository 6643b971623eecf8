"""Callbacks of the training loop: evaluation, checkpoints, signals and batch growth."""
