"""A run directory on disk: its files, lock, checkpoints and compatibility rules."""
