"""A teacher: its models, heads, forward pass and batch size."""
