"""What a teacher predicts: tensors, rows, their encoding, and who provides them."""
