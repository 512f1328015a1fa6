"""Engines compute: they take steps of token ids and give log-probabilities or tokens."""
