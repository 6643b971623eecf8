"""What happens between two training steps: evaluation, checkpoints, signals, larger batches."""
