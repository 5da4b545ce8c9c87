"""timm models by name, their weight files and their cards."""
