"""Bytes of a store: objects, arrays, documents, commits."""
