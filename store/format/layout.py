"""The arrays of a store: names, shapes, chunks, codecs, and the words that explain them.

One chunk is one block of one view, column after column, so that each column is compressed with a
code of its own: Zstandard by Blosc with blocks of a column or two, and a CRC-32C behind it. The
chunks of all views of a block are one shard, one object.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from distill.data.sample_ids import SampleIds
from distill.store.format.codes import ANSWER_ARRAYS, SQ_NORM_UNITS
from distill.store.format.manifest import Manifest
from distill.store.places.objects import Objects

SAMPLE_DESCRIPTIONS = {
    "sample_id": "BLAKE2b-128 of the sample's key, big-endian, high word first; ascending, so that "
    "rows are a random permutation of the dataset.",
    "label": "Class index of the sample's own label in the label set; -1 without one.",
}
SAMPLE_ARRAYS = tuple(SAMPLE_DESCRIPTIONS)
SAMPLE_CHUNK_ROWS = 2**20
MOST_HIERARCHY_BYTES = 2**28
COMPRESSION_LEVEL = 8  # 9 makes the same bytes in twice the time
# c.0.0.0 instead of c/0/0/0: no folder for each block.
FLAT_KEYS: Any = {"name": "default", "separator": "."}
# Columns that share a code: two of index cost 0.1 B per view and decode half as fast again.
COLUMNS_A_BLOCK = {"index": 2}


def blosc_block(name: str, block_rows: int, dtype: np.dtype[Any]) -> int:
    """Bytes that Blosc compresses together."""
    return COLUMNS_A_BLOCK.get(name, 1) * block_rows * dtype.itemsize


def create_arrays(
    objects: Objects, manifest: Manifest, ids: SampleIds, labels: NDArray[np.int64]
) -> None:
    """Empty answer arrays, and the samples' ids and labels."""
    create_answer_arrays(objects, manifest)
    create_sample_arrays(objects, ids, labels)


def create_answer_arrays(objects: Objects, manifest: Manifest) -> None:
    """Without a chunk; chunks that lie there stay."""
    coding = manifest.coding
    for name in ANSWER_ARRAYS:
        dtype, width = coding.dtypes[name], coding.widths[name]
        views = manifest.views.count
        objects.write_array(
            name,
            shape=(manifest.dataset.rows, views, width),
            shards=(manifest.block_rows, views, width),
            chunks=(manifest.block_rows, 1, width),
            chunk_key_encoding=FLAT_KEYS,
            dtype=dtype,
            filters=[TransposeCodec(order=(2, 1, 0))],
            compressors=[
                BloscCodec(
                    cname="zstd",
                    clevel=COMPRESSION_LEVEL,
                    shuffle="shuffle" if dtype.itemsize > 1 else "noshuffle",
                    typesize=dtype.itemsize,
                    blocksize=blosc_block(name, manifest.block_rows, dtype),
                ),
                Crc32cCodec(),
            ],
            fill_value=0,
            dimension_names=["row", "view", "slot" if name in ("index", "prob") else "level"],
            attributes=_explained(name, manifest),
        )


def create_sample_arrays(objects: Objects, ids: SampleIds, labels: NDArray[np.int64]) -> None:
    """`sample_id` and `label`, with their content."""
    for name, values in (("sample_id", ids), ("label", labels.astype(np.int32))):
        blosc = BloscCodec(
            cname="zstd", clevel=5, shuffle="bitshuffle", typesize=values.dtype.itemsize
        )
        objects.write_array(
            name,
            data=values,
            chunks=(min(SAMPLE_CHUNK_ROWS, len(values)), *values.shape[1:]),
            chunk_key_encoding=FLAT_KEYS,
            compressors=[blosc, Crc32cCodec()],
            fill_value=0,
            dimension_names=["row", "word"][: values.ndim],
            attributes={"description": SAMPLE_DESCRIPTIONS[name]},
        )


def create_hierarchy(objects: Objects, hierarchy: Mapping[str, Any]) -> None:
    """The hierarchy as compressed JSON: 0.5 MB of text for 11,221 classes."""
    text = json.dumps(hierarchy, sort_keys=True, ensure_ascii=False).encode()
    objects.write_array(
        "hierarchy",
        data=np.frombuffer(text, np.uint8),
        chunks=(len(text),),
        chunk_key_encoding=FLAT_KEYS,
        compressors=[ZstdCodec(level=19), Crc32cCodec()],
        fill_value=0,
        dimension_names=["byte"],
        attributes={"description": "Label set and chains of ancestors, as JSON in UTF-8."},
    )


def read_hierarchy(objects: Objects) -> dict[str, Any]:
    """What `create_hierarchy` wrote."""
    return dict(json.loads(objects.read_array("hierarchy", MOST_HIERARCHY_BYTES).tobytes()))


def _explained(name: str, manifest: Manifest) -> dict[str, Any]:
    spec, coding = manifest.encoding, manifest.coding
    left = "The prediction and its residual are in docs/store-format.md of distill."
    said, total = {
        "softmax": ("Sum of the ceil(n/20) largest teacher probabilities (no label clause)", "1"),
        "sigmoid": ("Mean of the teacher's yes-or-no probabilities", "the sum"),
        "flat": ("Sum of the teacher's probabilities, one softmax over all classes,", "it"),
    }[manifest.answers]
    explanations: dict[str, dict[str, Any]] = {
        "index": {
            "description": "Class of each kept entry, as its position within the slot's own "
            "hierarchy. Slots stand hierarchy after hierarchy, largest probability first.",
            "slots_per_hierarchy": list(spec.entries),
        },
        "prob": {
            "description": "Teacher probability of each kept entry; code 0 is an empty slot. What "
            f"is missing to {total} in a hierarchy is spread evenly over "
            "the classes in no slot.",
            "decode": f"code / {spec.prob_steps}",
            "slots_per_hierarchy": list(spec.entries),
        },
        "confidence": {
            "description": f"{said} of each hierarchy of n classes, before truncation; as the "
            f"zigzag of what prob leaves unpredicted, plus 1; code 0 in a row whose image could "
            f"not be read, and all else of it is 0. {left}",
            "decode": "(predicted + (((code - 1) >> 1) ^ -((code - 1) & 1))) / "
            f"{coding.confidence_units}",
        },
        "sq_norm": {
            "description": "Sum of squared teacher probabilities of each hierarchy, before "
            f"truncation; as the zigzag of what prob leaves unpredicted. {left}",
            "decode": f"(predicted + ((code >> 1) ^ -(code & 1))) / {SQ_NORM_UNITS}",
        },
    }
    return explanations[name]
