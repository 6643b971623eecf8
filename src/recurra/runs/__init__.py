"""Run directories on disk: files, lock, checkpoints and compatibility rules."""
