"""The teacher: loading, precomputing, inspecting and serving it."""
