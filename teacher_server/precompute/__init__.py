"""Filling a store: plan, run, repair."""
