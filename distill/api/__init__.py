"""For training loops of one's own: a teacher's targets as a dataset, and the losses on them."""
