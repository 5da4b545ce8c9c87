"""The raw ImageNet-21K release → ImageNet-21K-P."""
