"""Settings and variants of the comparisons in these tests."""

SMALL = {"hidden_size": 8, "batch_size": 4, "num_steps": 16, "lr": 1e-2, "sample_length": 5}
VARIANTS = {"gru": {"cell": "gru"}, "wide rnn": {"cell": "rnn", "hidden_size": 16}}
