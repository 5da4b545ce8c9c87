"""Detectors on pretrained backbones, after He et al. 2018 (arXiv 1811.08883)."""
