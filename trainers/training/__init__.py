"""The training loop, and the runs built on it."""
