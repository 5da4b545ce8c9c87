"""Commands that train, evaluate and export students."""
