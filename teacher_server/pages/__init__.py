"""The inspector as web pages."""
