"""The live teacher server."""
