"""Names of the losses' variants, for settings and annotations. Imports no torch."""

from typing import Literal

Divergence = Literal["mse", "kl", "dist"]
HierarchyWeights = Literal["paper", "sqrt", "even"]
MultiLabelLoss = Literal["asl", "bce", "focal"]
