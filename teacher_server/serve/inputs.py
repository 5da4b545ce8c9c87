"""Inputs of the model `teacher`, and checks of their combination.

Looks at the head alone, so that a request is refused before its tensors are read.
"""

import math

from distill.wire.framing import RequestHead
from distill.wire.refusal import malformed, too_large

INPUTS = {
    "image": ("UINT8", [-1, -1, -1, 3]),
    "jpeg": ("BYTES", [-1]),
    "sample_id": ("UINT64", [-1, 2]),
    "view": ("INT32", [-1]),
    "crc32": ("UINT32", [-1]),
}
# What a request is about, and what may come with it.
MAIN_INPUTS = {"image": "crc32", "jpeg": "crc32", "sample_id": "view"}


def main_input(head: RequestHead) -> tuple[str, list[int]]:
    """Name and shape of the input that a request is about; its first axis counts the images.

    Raises:
        Refused: 400, the inputs do not go together.
    """
    shapes: dict[str, list[int]] = {}
    for i, given in enumerate(head.inputs):
        where = f"inputs[{i}] ({given.name[:40]!r})"
        if given.name not in INPUTS:
            raise malformed(f"{where}: no such input, expected one of {', '.join(INPUTS)}")
        datatype, shape = INPUTS[given.name]
        if given.datatype != datatype:
            raise malformed(f"{where}: {given.datatype[:40]!r} found, expected {datatype}")
        fits = len(given.shape) == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, given.shape, strict=True)
        )
        if not fits or not all(given.shape):
            wanted = ", ".join("any" if n < 0 else str(n) for n in shape)
            raise malformed(f"{where}: shape {given.shape} found, expected [{wanted}]")
        shapes[given.name] = given.shape
    main = [name for name in MAIN_INPUTS if name in shapes]
    if len(main) != 1:
        raise malformed(
            f"inputs {', '.join(shapes)} found, expected one of {', '.join(MAIN_INPUTS)}"
        )
    name = main[0]
    for other in set(shapes) - {name}:
        if other != MAIN_INPUTS[name]:
            raise malformed(
                f"input {other} found with {name}, expected {MAIN_INPUTS[name]} or none"
            )
        if shapes[other][0] != shapes[name][0]:
            raise malformed(
                f"input {other}: {shapes[other][0]} elements found, expected {shapes[name][0]}, "
                f"one for each of {name}"
            )
    return name, shapes[name]


def require_within(name: str, shape: list[int], *, max_images: int, max_pixels: int) -> None:
    """Raises Refused with 413 where there are too many images, or pixels of one."""
    if shape[0] > max_images:
        raise too_large(
            f"{shape[0]} images found, expected at most {max_images} per request; send several"
        )
    if name == "image" and math.prod(shape[1:3]) > max_pixels:
        height, width = shape[1:3]
        raise too_large(
            f"images of {height}×{width} pixels found, expected at most {max_pixels} pixels"
        )
