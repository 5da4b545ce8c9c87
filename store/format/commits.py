"""Commit records: which blocks are there, and what each must contain.

A block is committed by one small Zarr group, `commits/<block>`, written after its chunks; its
attributes are the record, which carries a digest of itself. When all blocks are there the records
are compacted into two arrays of one generation, `commits/g<n>`, so that a store of any size opens
with few reads.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
import zarr.errors
from zarr.codecs import Crc32cCodec, ZstdCodec

from distill.errors import CorruptStoreError, first_line
from store.format.objects import Objects
from store.format.root import COMPACTED, digest_of_json, group_document

Record = dict[str, Any]

GROUP_KEY = "commits/zarr.json"
GROUP_DOCUMENT = group_document(
    {
        "description": "One group for each committed block; its attributes are the commit record. "
        "A block without one has not been written whole. In a finished store g<n> holds all "
        "records: content_sha256 [blocks, views, 32], and the records as JSON lines."
    }
)
RECORDS_CHUNK_BYTES = 2**22
SHA256 = re.compile(r"[0-9a-f]{64}")
GENERATION_KEY = re.compile(r"commits/g([0-9a-f]{16})/")
RECORD_KEY = re.compile(r"commits/(\d{8})/zarr\.json")


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


def read_records(objects: Objects, blocks: Iterable[int], views: int) -> dict[int, Record]:
    """The records of those blocks, of which some may have vanished since.

    Raises:
        CorruptStoreError: a record is not what was written.
    """
    wanted = list(blocks)
    contents = objects.read_all([record_key(block) for block in wanted])
    pairs = zip(wanted, contents, strict=True)
    return {b: _parsed(c, b, views, objects) for b, c in pairs if c is not None}


def delete_records(objects: Objects, blocks: Iterable[int]) -> None:
    """Take commits back."""
    objects.delete([record_key(block) for block in blocks])


def compacted_keys(generation: str) -> list[str]:
    """The documents of a generation's arrays."""
    return [f"commits/g{generation}/{name}/zarr.json" for name in COMPACTED]


def write_compacted(objects: Objects, records: Mapping[int, Record]) -> tuple[str, dict[str, str]]:
    """All records as arrays; their generation, and the SHA-256 of each array's bytes by name.

    A generation is named by its content: who compacts the same records writes the same objects.
    """
    ordered = [records[block] for block in sorted(records)]
    lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in ordered).encode()
    digests = "".join("".join(record["content_sha256"]) for record in ordered)
    views = len(ordered[0]["content_sha256"])
    arrays = {
        "content_sha256": np.frombuffer(bytes.fromhex(digests), np.uint8).reshape(-1, views, 32),
        "records": np.frombuffer(lines, np.uint8),
    }
    sha256 = {name: hashlib.sha256(values.data).hexdigest() for name, values in arrays.items()}
    generation = sha256["records"][:16]
    for name, values in arrays.items():
        rows = RECORDS_CHUNK_BYTES // values[0].size
        objects.write_array(
            f"commits/g{generation}/{name}",
            data=values,
            chunks=(min(len(values), rows), *values.shape[1:]),
            compressors=[ZstdCodec(level=9), Crc32cCodec()],
            fill_value=0,
        )
    return generation, sha256


def read_digests(
    objects: Objects, generation: str, sha256: str, shape: tuple[int, int]
) -> list[tuple[str, ...]]:
    """[blocks][views]: the content hash, in hexadecimal.

    Raises:
        CorruptStoreError: they are not what was compacted.
    """
    content = _compacted(objects, generation, "content_sha256", sha256)
    blocks, views = shape
    if len(content) != blocks * views * 32:
        raise CorruptStoreError(
            f"{objects.location}: {len(content)} bytes of content hashes found, expected "
            f"{blocks * views * 32}; `distill store repair` computes what is bad again"
        )
    text, row = content.hex(), 64 * views
    return [
        tuple(text[b * row + 64 * v : b * row + 64 * v + 64] for v in range(views))
        for b in range(blocks)
    ]


def read_compacted_records(
    objects: Objects, generation: str, sha256: str, views: int
) -> dict[int, Record]:
    """The whole records.

    Raises:
        CorruptStoreError: they are not what was compacted.
    """
    lines = _compacted(objects, generation, "records", sha256).splitlines()
    try:
        records = [json.loads(line) for line in lines]
        for block, record in enumerate(records):
            _require_possible(record, block, views)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(objects, f"commits/g{generation}/records", first_line(error)) from error
    return dict(enumerate(records))


def delete_other_generations(objects: Objects, generation: str) -> None:
    """Remove compacted commits that no root names any more."""
    keys = [(GENERATION_KEY.match(key), key) for key in objects.keys("commits")]
    objects.delete([key for parsed, key in keys if parsed and parsed[1] != generation])


def _compacted(objects: Objects, generation: str, name: str, sha256: str) -> bytes:
    path = f"commits/g{generation}/{name}"
    try:
        content = np.asarray(zarr.open_array(objects.zarr(path), mode="r")[...]).tobytes()
    except (ValueError, RuntimeError, KeyError, TypeError, FileNotFoundError) as error:
        raise _damaged(objects, path, first_line(error)) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged(objects, path, "its digest does not match")
    return content


def _document(record: Record) -> bytes:
    return group_document({**record, "record_sha256": digest_of_json(record)})


def _parsed(content: bytes, block: int, views: int, objects: Objects) -> Record:
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
        _require_possible(record, block, views)
        return record
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(objects, f"commits/{block:08d}", first_line(error)) from error


def _require_possible(record: Record, block: int, views: int) -> None:
    digests = record["content_sha256"]
    has_digests = len(digests) == views and all(SHA256.fullmatch(digest) for digest in digests)
    bad = all({"key", "reason"} <= entry.keys() for entry in record["bad"])
    if record["block"] != block or not has_digests or not bad:
        raise ValueError("it has values that distill never writes")


def _damaged(objects: Objects, part: str, why: str) -> CorruptStoreError:
    return CorruptStoreError(
        f"{objects.location}: {part} is damaged ({why}), expected what was committed; "
        "`distill store repair` computes what is bad again"
    )
