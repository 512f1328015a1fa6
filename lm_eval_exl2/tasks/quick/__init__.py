"""Quick runs: fixed random slices of well-known tasks, to screen a checkpoint before a full run."""
