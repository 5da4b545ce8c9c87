"""Pages of the inspector: the same for `distill inspect --serve` and the teacher server."""
