"""Output for users: training progress, loss curves, overfitting messages and score pages."""
