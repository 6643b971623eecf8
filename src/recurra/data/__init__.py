"""From prepared text to token ids on disk and batches of them."""
