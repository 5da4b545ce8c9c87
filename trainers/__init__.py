"""Student training."""
