"""Decoded views on this machine, for random access."""
