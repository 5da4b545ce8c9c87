"""`distill inspect`."""
