"""The semantic hierarchy: classes, levels, chains of ancestors, and the softmax of each level."""
