"""Losses on [batch, classes] logits, and the accuracy of predictions."""
