"""Listening, access and errors of any HTTP server here."""
