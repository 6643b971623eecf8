"""The command line: one file per verb. Parses, calls the library, prints; computes nothing."""
