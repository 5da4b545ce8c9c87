"""The teacher: loading it, and precomputing its answers into a store."""
