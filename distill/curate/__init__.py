"""Making a better data set: prepare, check, duplicates, reassessed labels."""
