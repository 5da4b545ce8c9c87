"""ImageNet-21K-P out of the raw release: `distill.prepare.run.prepare`."""
