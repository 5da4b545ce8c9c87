"""Students and trained models: create, open, export, predict."""
