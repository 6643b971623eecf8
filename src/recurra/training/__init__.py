"""Training: the recipe for unspecified settings, the loop, evaluation and checkpoints."""
