"""Verify, repair, and new stores from stores."""
