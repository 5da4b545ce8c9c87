"""Images, labels, views, and the order in which they are read."""
