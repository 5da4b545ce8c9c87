"""Reassessed labels of images, as the classes of a model."""

from collections.abc import Mapping, Sequence

from timm.data import RealLabelsImagenet

from distill.curate.real_labels import IMAGENET_VAL, Label
from distill.data.source import ImageSource
from distill.errors import DataError
from distill.hierarchy.hypernyms import flat_label_set
from distill.hierarchy.semantic import SemanticHierarchy

IMAGENET_1K = 1000


def published_classes(source: ImageSource) -> list[list[int]]:
    """By row: the published labels of ImageNet-1K's validation images, which timm ships.

    Raises:
        DataError: a key is none of ILSVRC2012_val_….
    """
    names = [f"{IMAGENET_VAL.format(number)}.JPEG" for number in range(1, 50_001)]
    known = RealLabelsImagenet(names).real_labels
    classes = []
    for sample in source.samples:
        name = sample.key.rpartition("/")[2] + ".JPEG"
        if name not in known:
            raise DataError(
                f"sample {sample.key!r} found, expected ILSVRC2012_val_00000001 to _00050000; "
                "--labels real is for ImageNet-1K's validation images, pass a file for others"
            )
        classes.append([int(c) for c in known[name]])
    return classes


def classes_by_row(
    labels: Mapping[str, Sequence[Label]],
    source: ImageSource,
    hierarchy: SemanticHierarchy | None,
    num_classes: int,
) -> list[list[int]]:
    """By row: the classes of those labels, found by the sample's key or the last part of it.

    Labels are class indices, or synsets of `hierarchy` (of ImageNet-1K for 1,000 classes without
    one). Images that no label is known of have none.

    Raises:
        DataError: no image is known, or a label is no class.
    """
    return [list(of_row or ()) for of_row in known_by_row(labels, source, hierarchy, num_classes)]


def known_by_row(
    labels: Mapping[str, Sequence[Label]],
    source: ImageSource,
    hierarchy: SemanticHierarchy | None,
    num_classes: int,
) -> list[Sequence[int] | None]:
    """`classes_by_row`, but None for images that are not among the labels.

    Raises:
        DataError: no image is known, or a label is no class.
    """
    keys = [sample.key for sample in source.samples]
    found = [labels.get(key, labels.get(key.rpartition("/")[2])) for key in keys]
    if all(each is None for each in found):
        raise DataError(
            f"{source.location}: none of its {len(keys)} images is among the {len(labels)} that "
            f"the labels are of (first: {keys[0]!r}), expected keys of that data"
        )
    synsets: Sequence[str] = ()
    if hierarchy:
        synsets = hierarchy.synsets
    elif num_classes == IMAGENET_1K:
        synsets = flat_label_set("imagenet-1k")
    index = {synset: c for c, synset in enumerate(synsets)}
    return [
        None if each is None else [_class_of(label, index, num_classes) for label in each]
        for each in found
    ]


def _class_of(label: Label, index: Mapping[str, int], num_classes: int) -> int:
    named = index.get(str(label))  # a class whose name is a number goes by its name
    c = named if named is not None else label if isinstance(label, int) else -1
    if not 0 <= c < num_classes:
        raise DataError(
            f"reassessed label {label!r} found, expected a class of the model ({num_classes}): an "
            "index or a synset; pass the --label-set that the labels are of"
        )
    return c
