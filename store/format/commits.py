"""Commit records: which blocks are there, and what each must contain.

A block is committed by one small Zarr group, `commits/<block>`, written after its chunks; its
attributes are the record, which names its store and carries a digest of itself. When all blocks are
there the records are compacted into arrays of one generation, `commits/g<n>`, so that a store of
any size opens with few reads.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from distill.errors import CorruptStoreError, first_line
from distill.store.format import version2
from distill.store.format.chunks import ChunkSizes
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.layout import FLAT_KEYS
from distill.store.format.manifest import Manifest, digest_of_json
from distill.store.format.root import COMPACTED, Root, group_document
from distill.store.places.objects import Objects

Record = dict[str, Any]

GROUP_KEY = "commits/zarr.json"
GROUP_DOCUMENT = group_document(
    {
        "description": "One group for each committed block; its attributes are the commit record. "
        "A block without one has not been written whole. In a finished store g<n> holds all "
        "records: content_sha256 [blocks, views, 32], chunk_bytes [blocks, views, arrays], and the "
        "records as JSON lines."
    }
)
RECORDS_CHUNK_BYTES, MOST_RECORD_BYTES = 2**22, 2**32
DIMENSIONS = {
    "content_sha256": ["block", "view", "digest_byte"],
    "chunk_bytes": ["block", "view", "array"],
    "records": ["record_byte"],
}
SHA256 = re.compile(r"[0-9a-f]{64}")
GENERATION_KEY = re.compile(r"commits/g([0-9a-f]{16})/")
RECORD_KEY = re.compile(r"commits/(\d{8})/zarr\.json")


class Commit(NamedTuple):
    """What a reader needs of a block. digests: of its content, in hexadecimal, by view.

    chunk_bytes: sizes of its chunks, by view and array; none in format 2.
    """

    digests: tuple[str, ...]
    chunk_bytes: ChunkSizes


def commit_of(record: Record) -> Commit:
    """What its record says of a block."""
    return Commit(tuple(record["content_sha256"]), record.get("chunk_bytes", ()))


def record_key(block: int) -> str:
    """Where the record of a block lies."""
    return f"commits/{block:08d}/zarr.json"


def write_record(objects: Objects, record: Record) -> bool:
    """Commit a block; False where it has been committed already."""
    return objects.write_new(record_key(record["block"]), _document(record))


def replace_record(objects: Objects, record: Record) -> None:
    """Commit a block over another commit of it."""
    objects.write(record_key(record["block"]), _document(record))


def recorded_blocks(objects: Objects, num_blocks: int) -> list[int]:
    """Blocks that have a record of their own, ascending."""
    # By key: a killed writer may leave an empty folder of that name on a disk.
    names = [RECORD_KEY.fullmatch(key) for key in objects.keys("commits")]
    return sorted(block for block in (int(n[1]) for n in names if n) if block < num_blocks)


def read_records(objects: Objects, blocks: Iterable[int], manifest: Manifest) -> dict[int, Record]:
    """The records of those blocks, of which some may have vanished since.

    Raises:
        CorruptStoreError: a record is not what was written, or of another store.
    """
    wanted = list(blocks)
    contents = objects.read_all([record_key(block) for block in wanted])
    pairs = zip(wanted, contents, strict=True)
    return {b: _parsed(c, b, manifest, objects) for b, c in pairs if c is not None}


def damaged_records(objects: Objects, manifest: Manifest) -> list[int]:
    """Blocks whose own record is torn, or of another store."""
    damaged = []
    blocks = recorded_blocks(objects, manifest.num_blocks)
    contents = objects.read_all([record_key(block) for block in blocks])
    for block, content in zip(blocks, contents, strict=True):
        try:
            if content is not None:
                _parsed(content, block, manifest, objects)
        except CorruptStoreError:
            damaged.append(block)
    return damaged


def delete_records(objects: Objects, blocks: Iterable[int]) -> None:
    """Take commits back."""
    objects.delete([record_key(block) for block in blocks])


def generations(objects: Objects) -> list[str]:
    """Generations of compacted commits that lie there, whether they count or not."""
    found = (GENERATION_KEY.match(key) for key in objects.keys("commits"))
    return sorted({each[1] for each in found if each})


def compacted_keys(generation: str, names: Sequence[str] = COMPACTED) -> list[str]:
    """The documents of a generation."""
    group = [] if names == version2.COMPACTED else [f"commits/g{generation}/zarr.json"]
    return [*group, *(f"commits/g{generation}/{name}/zarr.json" for name in names)]


def digests_of_generation(objects: Objects, generation: str) -> dict[str, str]:
    """What a root would say of it, by name of array.

    Raises:
        ValueError: it is not whole: its name is a digest of its records.
    """
    arrays = {
        n: objects.read_array(f"commits/g{generation}/{n}", MOST_RECORD_BYTES) for n in COMPACTED
    }
    sha256 = {n: hashlib.sha256(values.tobytes()).hexdigest() for n, values in arrays.items()}
    if not sha256["records"].startswith(generation):
        raise ValueError("it is not what was compacted")
    return sha256


def write_compacted(objects: Objects, records: Mapping[int, Record]) -> tuple[str, dict[str, str]]:
    """All records as arrays; their generation, and the SHA-256 of each array's bytes by name.

    A generation is named by its content: who compacts the same records writes the same objects.
    """
    ordered = [records[block] for block in sorted(records)]
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in ordered).encode()
    digests = "".join("".join(record["content_sha256"]) for record in ordered)
    views = len(ordered[0]["content_sha256"])
    arrays: dict[str, NDArray[Any]] = {
        "content_sha256": np.frombuffer(bytes.fromhex(digests), np.uint8).reshape(-1, views, 32),
        "chunk_bytes": np.array([record["chunk_bytes"] for record in ordered], np.uint32),
        "records": np.frombuffer(lines, np.uint8),
    }
    sha256 = {name: hashlib.sha256(values.data).hexdigest() for name, values in arrays.items()}
    generation = sha256["records"][:16]
    folder = f"commits/g{generation}"
    objects.write(f"{folder}/zarr.json", group_document({}))
    for name, values in arrays.items():
        rows = max(1, RECORDS_CHUNK_BYTES // values[0].nbytes)
        objects.write_array(
            f"{folder}/{name}",
            data=values,
            chunks=(min(len(values), rows), *values.shape[1:]),
            chunk_key_encoding=FLAT_KEYS,
            compressors=[ZstdCodec(level=9), Crc32cCodec()],
            fill_value=0,
            dimension_names=DIMENSIONS[name],
        )
    return generation, sha256


def read_compacted(objects: Objects, root: Root) -> list[Commit]:
    """What a reader needs of each block.

    Raises:
        CorruptStoreError: they are not what was compacted.
    """
    blocks, views = root.manifest.num_blocks, root.manifest.views.count
    digests = _compacted(objects, root, "content_sha256", (blocks, views, 32))
    text, row = digests.tobytes().hex(), 64 * views
    by_block = [
        tuple(text[b * row + 64 * v : b * row + 64 * v + 64] for v in range(views))
        for b in range(blocks)
    ]
    if root.manifest.version == version2.VERSION:
        return [Commit(digests, ()) for digests in by_block]
    sizes = _compacted(objects, root, "chunk_bytes", (blocks, views, len(ANSWER_ARRAYS)))
    return [Commit(*pair) for pair in zip(by_block, sizes.tolist(), strict=True)]


def read_compacted_records(objects: Objects, root: Root) -> dict[int, Record]:
    """The whole records.

    Raises:
        CorruptStoreError: they are not what was compacted.
    """
    lines = _compacted(objects, root, "records", None).tobytes().splitlines()
    try:
        records = [json.loads(line) for line in lines]
        for block, record in enumerate(records):
            _require_possible(record, block, root.manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        part = f"commits/g{root.generation}/records"
        raise _damaged(objects, part, first_line(error)) from error
    return dict(enumerate(records))


def delete_other_generations(objects: Objects, generation: str) -> None:
    """Remove compacted commits that no root names any more."""
    keys = [(GENERATION_KEY.match(key), key) for key in objects.keys("commits")]
    objects.delete([key for parsed, key in keys if parsed and parsed[1] != generation])


def _compacted(
    objects: Objects, root: Root, name: str, shape: tuple[int, ...] | None
) -> NDArray[Any]:
    path = f"commits/g{root.generation}/{name}"
    try:
        values = objects.read_array(path, math.prod(shape) if shape else MOST_RECORD_BYTES)
    except (ValueError, RuntimeError, KeyError, TypeError, FileNotFoundError) as error:
        raise _damaged(objects, path, first_line(error)) from error
    if hashlib.sha256(values.tobytes()).hexdigest() != root.compacted_sha256[name]:
        raise _damaged(objects, path, "its digest does not match")
    if shape is not None and values.shape != shape:
        raise _damaged(objects, path, f"its shape is {values.shape}, expected {shape}")
    return values


def _document(record: Record) -> bytes:
    return group_document({**record, "record_sha256": digest_of_json(record)})


def _parsed(content: bytes, block: int, manifest: Manifest, objects: Objects) -> Record:
    try:
        document = json.loads(content)
        record: Record = document["attributes"]
        sealed = record.pop("record_sha256")
        if document != {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": record,
        } or sealed != digest_of_json(record):
            raise ValueError("its digest does not match")
        _require_possible(record, block, manifest)
        return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(objects, f"commits/{block:08d}", first_line(error)) from error


def _require_possible(record: Record, block: int, manifest: Manifest) -> None:
    digests, views = record["content_sha256"], manifest.views.count
    possible = len(digests) == views and all(SHA256.fullmatch(digest) for digest in digests)
    possible &= all({"key", "reason"} <= entry.keys() for entry in record["bad"])
    if manifest.version != version2.VERSION:
        if record["store"] != manifest.identity:
            raise ValueError(f"it is of another store, {str(record['store'])[:12]}")
        sizes = record["chunk_bytes"]
        possible &= len(sizes) == views and all(len(s) == len(ANSWER_ARRAYS) for s in sizes)
        possible &= all(type(n) is int and 0 <= n < 2**32 for of_view in sizes for n in of_view)
    if record["block"] != block or not possible:
        raise ValueError("it has values that distill never writes")


def _damaged(objects: Objects, part: str, why: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"{objects.location}: {part} is damaged ({why}), expected what was committed; "
        "`distill store repair` computes what is bad again"
    )
