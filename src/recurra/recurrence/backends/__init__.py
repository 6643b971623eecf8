"""Implementations of one recurrent layer; all share the signature of `reference`."""
