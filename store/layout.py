"""The arrays of a store: names, shapes, chunks, codecs, and the words that explain them.

One chunk is one block of one view. Compression is bit-shuffled Zstandard with a CRC-32C behind it.
"""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from distill.sample_id import SampleIds
from store.codes import LINEAR_STEPS, code_dtypes
from store.manifest import Manifest

ANSWER_ARRAYS = ("index", "prob", "confidence", "sq_norm", "valid")
SAMPLE_CHUNK_ROWS = 2**18


def create_arrays(
    group: zarr.Group, manifest: Manifest, ids: SampleIds, labels: NDArray[np.int64]
) -> None:
    """Empty answer arrays, and the samples' ids and labels."""
    rows, views = manifest.dataset.rows, manifest.views.count
    hierarchies = len(manifest.hierarchy.classes_per_hierarchy)
    dtypes = code_dtypes(manifest.encoding, manifest.hierarchy.classes_per_hierarchy)
    widths = {
        "index": ("slot", sum(manifest.slots)),
        "prob": ("slot", sum(manifest.slots)),
        "confidence": ("hierarchy", hierarchies),
        "sq_norm": ("hierarchy", hierarchies),
    }
    for name in ANSWER_ARRAYS:
        last = [widths[name]] if name in widths else []
        group.create_array(
            name,
            shape=(rows, views, *(size for _, size in last)),
            chunks=(min(manifest.block_rows, rows), 1, *(size for _, size in last)),
            dtype=dtypes[name],
            compressors=_compressors(dtypes[name].itemsize),
            fill_value=0,
            dimension_names=["row", "view", *(dimension for dimension, _ in last)],
            attributes=_explained(name, manifest),
        )
    for name, values in (("sample_id", ids), ("label", labels.astype(np.int32))):
        group.create_array(
            name,
            data=values,
            chunks=(min(SAMPLE_CHUNK_ROWS, rows), *values.shape[1:]),
            compressors=_compressors(values.dtype.itemsize),
            dimension_names=["row", "word"][: values.ndim],
            attributes=_explained(name, manifest),
        )


def _compressors(itemsize: int) -> list[Any]:
    blosc = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=itemsize)
    return [blosc, Crc32cCodec()]


def _explained(name: str, manifest: Manifest) -> dict[str, Any]:
    octaves, top = manifest.encoding.prob_octaves, 2**manifest.encoding.prob_bits - 1
    linear = f"value = code / {LINEAR_STEPS}"
    explanations: dict[str, dict[str, Any]] = {
        "index": {
            "description": "Class of each kept entry, as its position within the slot's own "
            "hierarchy. Slots stand hierarchy after hierarchy, largest probability first.",
            "slots_per_hierarchy": list(manifest.slots),
        },
        "prob": {
            "description": "Teacher probability of each kept entry; code 0 is an empty slot. What "
            "is missing to 1 in a hierarchy is spread evenly over the classes in no slot.",
            "decode": f"0 if code == 0 else 2 ** ({octaves} * ((code - 1) / {top - 1} - 1))",
            "slots_per_hierarchy": list(manifest.slots),
        },
        "confidence": {
            "description": "Sum of the ceil(n/20) largest teacher probabilities of each hierarchy "
            "of n classes, before truncation and without the label clause of the paper.",
            "decode": linear,
        },
        "sq_norm": {
            "description": "Sum of squared teacher probabilities of each hierarchy, before "
            "truncation.",
            "decode": linear,
        },
        "valid": {"description": "False where the image could not be read; its row is all zero."},
        "sample_id": {
            "description": "BLAKE2b-128 of the sample's key, big-endian, high word first; "
            "ascending, so that rows are a random permutation of the dataset."
        },
        "label": {
            "description": "Class index of the sample's own label in the label set; -1 without one."
        },
    }
    return explanations[name]
