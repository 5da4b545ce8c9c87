"""WebDataset tars: `key.jpg` beside `key.wnid` or `key.cls`, read at random by an index.

Listing a tar reads all its headers, of a tar in a bucket all its bytes. So it is done once: the
index is kept in the user's cache, and `distill prepare` leaves one beside each tar that it writes.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath

import numpy as np

from distill.data.formats.samples import IMAGE_SUFFIXES, ROW, Sample, SampleTable
from distill.data.formats.tar_members import TarMember, members, open_tar
from distill.errors import DataError, DataUnavailableError
from distill.files import write_atomically
from distill.storage import place_of

MAX_LABEL_BYTES = 256
MAX_INDEX_BYTES = 4 * 2**30
PROBE_BYTES = 8192
TARS_AT_ONCE = 8
FORMAT = "distill-tar-index/1"
WNID_IN_NAME = re.compile(r"^(n\d{8})_")
LABEL_SUFFIXES = (".wnid", ".cls")


def list_tars(tars: list[str], indexes: Path | None) -> SampleTable:
    """The images of all, tar after tar.

    indexes: folder to keep indexes in; None for none.

    Raises:
        DataError: one is not a complete uncompressed tar, or holds a key twice in a row.
    """
    with ThreadPoolExecutor(TARS_AT_ONCE) as pool:  # a bucket answers slowly, but many at once
        return SampleTable.concatenate(list(pool.map(lambda tar: _table_of(tar, indexes), tars)))


def list_tar(file: BufferedReader, path: str) -> Iterator[Sample]:
    """The images of one tar; labels may stand anywhere in it."""
    images: dict[str, TarMember] = {}
    labels: dict[str, str | int] = {}
    for member in members(file, path):
        key, suffix = split_key(member.name)
        if suffix in IMAGE_SUFFIXES:
            if key in images:
                raise DataError(
                    f"{path}: the key {key!r} appears twice; expected one image per key"
                )
            images[key] = member
        elif suffix in LABEL_SUFFIXES:
            labels[key] = _read_label(file, member, suffix, path)
    for key, member in images.items():
        guess = WNID_IN_NAME.match(PurePosixPath(key).name)
        label = labels.get(key, guess.group(1) if guess else None)
        guessed = key not in labels
        yield Sample(key, label, path, offset=member.offset, size=member.size, guessed=guessed)


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the base name."""
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), (dot + suffix).lower()


def _read_label(file: BufferedReader, member: TarMember, suffix: str, path: str) -> str | int:
    here = file.tell()
    file.seek(member.offset)
    text = file.read(min(member.size, MAX_LABEL_BYTES)).decode("utf-8", "replace").strip()
    file.seek(here)
    if suffix == ".wnid":
        return text
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise DataError(f"{path}: {member.name!r} holds {text!r}, expected a class index")
    return int(text)


# -- the index ------------------------------------------------------------------------------------


def _table_of(tar: str, indexes: Path | None) -> SampleTable:
    with open_tar(tar) as file:
        identity = identity_of(file)
        name = hashlib.sha256(tar.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        kept = indexes / f"{name}.index" if indexes else None
        place, beside = place_of(tar), index_path(tar)
        written = place.modified_ns(tar)
        stamped = f"{identity} {written}"
        if kept and (known := _read_index(str(kept), stamped, tar)) is not None:
            return known
        # A copy of a tar is written at another time than the tar, but not after its index.
        if place.modified_ns(beside) >= written:
            known = _read_index(beside, identity, tar)
            if known is not None:
                return known
        table = SampleTable.of(list_tar(file, tar))
    if kept:
        with suppress(OSError):  # no right to write there, or no room: listed again next time
            write_atomically(kept, index_of(table, stamped))
    return table


def index_path(tar: str) -> str:
    """Where the index beside a tar is, if there is one."""
    folder, _, name = tar.rpartition("/")
    return f"{folder}/.{name}.index" if folder else f".{name}.index"


def index_of(table: SampleTable, identity: str) -> bytes:
    """A tar's index as a file: NumPy's .npz of the table, and which tar it is of."""
    head = {
        "format": FORMAT,
        "identity": identity,
        "labels": table.labels,
        "suffixes": table.suffixes,
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.frombuffer(json.dumps(head).encode(), np.uint8),
        rows=table.rows,
        keys=np.frombuffer(table.keys, np.uint8),
    )
    return buffer.getvalue()


def _read_index(path: str, identity: str, tar: str) -> SampleTable | None:
    """None where there is none of this tar; one that makes no sense counts as none."""
    try:
        content = place_of(path).read(path, 0, -1, at_most=MAX_INDEX_BYTES)
        with np.load(io.BytesIO(content), allow_pickle=False) as document:
            head = json.loads(document["head"].tobytes())
            rows, keys = document["rows"], document["keys"].tobytes()
        keys.decode("utf-8", "surrogatepass")
        if head["format"] != FORMAT or head["identity"] != identity or rows.dtype != ROW:
            return None
        table = SampleTable(rows, keys, tuple(head["labels"]), (tar,), tuple(head["suffixes"]))
        return table if _is_possible(table, int(identity.partition(" ")[0])) else None
    except DataUnavailableError:
        raise
    except Exception:  # NumPy and zipfile raise whatever the bytes provoke
        return None


def _is_possible(table: SampleTable, tar_bytes: int) -> bool:
    rows = table.rows
    ends = rows["offset"] + rows["size"]
    named = rows["key_start"] + rows["key_bytes"] + rows["name_bytes"]
    return rows.ndim == 1 and bool(
        (rows["offset"] >= 0).all()
        and (rows["size"] >= 0).all()
        and (ends <= tar_bytes).all()
        and (rows["key_start"] >= 0).all()
        and (rows["key_bytes"] >= 0).all()
        and (rows["name_bytes"] == 0).all()
        and (named <= len(table.keys)).all()
        and (rows["place"] == 0).all()
        and (rows["label"] >= 0).all()
        and (rows["label"] < len(table.labels)).all()
        and (rows["suffix"] < len(table.suffixes)).all()
        and all(isinstance(label, str | int | None) for label in table.labels)
        and all(isinstance(suffix, str) for suffix in table.suffixes)
    )


def identity_of(file: BufferedReader) -> str:
    """Size, and a digest of how the tar begins and ends: its first and its last images."""
    size = file.seek(0, io.SEEK_END)
    digest = hashlib.sha256()
    for at in (0, max(0, size - 4 * PROBE_BYTES)):
        file.seek(at)
        digest.update(file.read(PROBE_BYTES if at == 0 else 4 * PROBE_BYTES))
    return f"{size} {digest.hexdigest()}"
