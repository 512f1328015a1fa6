"""Functions that this package's task files call."""
