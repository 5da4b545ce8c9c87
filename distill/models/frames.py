"""What a model says of clips: the mean over their frames.

An image model with a linear classifier: the mean of its logits is what the classifier says of the
mean embedding, so that one head is trained on the average of the frames.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def logits_of(
    model: Callable[[Tensor], Tensor], inputs: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch classes"]:
    """What it says of normalised images; of clips, where there are 3 channels for each frame."""
    frames = inputs.shape[1] // 3
    images = inputs.unflatten(1, (frames, 3)).flatten(0, 1)
    logits = model(images.contiguous(memory_format=torch.channels_last))
    return logits if frames == 1 else logits.unflatten(0, (len(inputs), frames)).mean(1)
