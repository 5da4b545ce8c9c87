"""The logit store: certified, compressed teacher outputs in a Zarr v3 group. No torch, no web."""
