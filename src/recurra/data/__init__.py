"""Token ids of a text on disk and their batches."""
