"""What a training shows: progress, loss curves, overfitting and score pages."""
