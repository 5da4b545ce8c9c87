"""torchvision's detectors on any timm backbone whose features form a pyramid.

Norms of the feature pyramid and of the heads are group norms, which do not care how small a batch
is; the backbone keeps its own, trained on: none is frozen ("Rethinking ImageNet pre-training", He
et al. 2018, arXiv 1811.08883, section 3). Everything that detects is torchvision's.
"""

from collections import OrderedDict
from math import gcd
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from distill.errors import ConfigError, first_line
from distill.models.card import ModelInput

Kind = Literal["faster-rcnn", "mask-rcnn", "retinanet"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GROUPS = 32
STRIDES = (4, 8, 16, 32)
PROBE = 256  # pixels of the image that tells the strides
USUAL_SIDE = 512  # of images for which the usual anchors are
LONG = 1333 / 800  # times the shorter side of an image, as COCO's are resized


def norm(channels: int) -> nn.Module:
    """Group norm, of eight channels at least: a map of one pixel has no other spread."""
    return nn.GroupNorm(gcd(channels, GROUPS, max(1, channels // 8)), channels)


class Pyramid(nn.Module):
    """Features of a backbone at strides 4 to 32, or 8 to 32, and coarser ones, all as wide.

    Raises:
        ConfigError: the backbone has none.
    """

    def __init__(self, backbone: nn.Module, name: str, channels: int, kind: Kind) -> None:
        super().__init__()
        wanted = STRIDES[1:] if kind == "retinanet" else STRIDES
        self.places, widths = _places(backbone, name, wanted)
        self.backbone, self.out_channels = backbone, channels
        extra = LastLevelP6P7(channels, channels) if kind == "retinanet" else LastLevelMaxPool()
        self.pyramid = FeaturePyramidNetwork(widths, channels, extra, norm_layer=norm)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Feature maps by name, the finest first."""
        features_of: Any = self.backbone.forward_intermediates
        found = features_of(images, indices=self.places, intermediates_only=True)
        named = OrderedDict((str(i), each) for i, each in enumerate(found))
        features: OrderedDict[str, Tensor] = self.pyramid(named)
        return features


def _places(backbone: nn.Module, name: str, wanted: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Which of timm's intermediate features have those strides, the last of each; their widths."""
    training = backbone.training
    try:
        with torch.no_grad():
            found = backbone.eval().forward_intermediates(  # type: ignore[operator]
                torch.zeros(1, 3, PROBE, PROBE), intermediates_only=True
            )
        places = {PROBE // each.shape[-1]: i for i, each in enumerate(found)}
        chosen = [places[stride] for stride in wanted]
    except (AttributeError, KeyError, RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"{name}: no features of strides {', '.join(map(str, wanted))} found "
            f"({first_line(error)}), expected a model with a pyramid of them, such as a ResNet"
        ) from error
    finally:
        backbone.train(training)
    return chosen, [int(found[i].shape[1]) for i in chosen]


def make_detector(
    kind: Kind,
    backbone: nn.Module,
    *,
    name: str,
    model_input: ModelInput,
    classes: int,
    image_size: int,
    channels: int,
) -> nn.Module:
    """A detector of that many classes. image_size: of the shorter side of images.

    Raises:
        ConfigError: the backbone's features form no pyramid.
    """
    pyramid = Pyramid(backbone, name, channels, kind)
    common: dict[str, Any] = {
        "min_size": image_size,
        "max_size": round(LONG * image_size),
        "image_mean": list(model_input.mean),
        "image_std": list(model_input.std),
    }
    # Anchors shrink with the images, but not below some strides: things would lie between them.
    usual, least = (4, 2) if kind == "retinanet" else (8, 4)
    strides = max(least, usual * min(1.0, image_size / USUAL_SIDE))
    ratios = (0.5, 1.0, 2.0)
    if kind == "retinanet":
        sizes = tuple(
            tuple(int(stride * strides * 2 ** (k / 3)) for k in range(3))
            for stride in (8, 16, 32, 64, 128)
        )
        anchors = AnchorGenerator(sizes, (ratios,) * len(sizes))
        head = RetinaNetHead(
            channels, anchors.num_anchors_per_location()[0], classes + 1, norm_layer=norm
        )
        retinanet: nn.Module = RetinaNet(
            pyramid, classes + 1, anchor_generator=anchors, head=head, **common
        )
        return retinanet
    anchors = AnchorGenerator(
        tuple((stride * strides,) for stride in (4, 8, 16, 32, 64)), (ratios,) * 5
    )
    heads: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "box_head": FastRCNNConvFCHead(
            (channels, 7, 7), [channels] * 4, [4 * channels], norm_layer=norm
        ),
        "box_predictor": FastRCNNPredictor(4 * channels, classes + 1),
    }
    if kind == "faster-rcnn":
        faster: nn.Module = FasterRCNN(pyramid, **heads, **common)
        return faster
    masks = MaskRCNNHeads(channels, [channels] * 4, 1, norm_layer=norm)
    predictor = MaskRCNNPredictor(channels, channels, classes + 1)
    with_masks: nn.Module = MaskRCNN(
        pyramid, mask_head=masks, mask_predictor=predictor, **heads, **common
    )
    return with_masks
