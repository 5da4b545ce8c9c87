"""Semantic accuracy of a student on labelled images, squish-resized."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from distill.data import ImageSource
from distill.hierarchy import SemanticHierarchy
from distill.loader import in_batches, load_views
from distill.metrics import SemanticAccuracy, SemanticAccuracyMeter
from distill.models import ModelInput
from distill.views import ViewPolicy


@torch.no_grad()
def evaluate(
    model: nn.Module,
    *,
    model_input: ModelInput,
    source: ImageSource,
    labels: NDArray[np.int64],
    hierarchy: SemanticHierarchy,
    batch_size: int = 256,
    workers: int = 2,
) -> SemanticAccuracy:
    """Top-1 per hierarchy and in total; images that cannot be read are passed over."""
    device = next(model.parameters()).device
    meter = SemanticAccuracyMeter(hierarchy, device)
    training = model.training
    model.eval()
    requests = in_batches(range(len(source)), (0,), batch_size)
    for batch in load_views(
        source,
        ViewPolicy(name="plain"),
        [model_input.size],
        requests,
        workers=workers,
    ):
        if batch.rows:
            pixels = batch.pixels[0][:, 0].to(device, non_blocking=True)
            expected = torch.from_numpy(labels[batch.rows]).to(device, non_blocking=True)
            meter.update(logits=model(model_input.normalise(pixels)).float(), labels=expected)
    model.train(training)
    return meter.result()
