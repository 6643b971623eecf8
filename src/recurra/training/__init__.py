"""From ids to trained weights: batches, clipping, schedules, the loop, checkpoints, progress."""
