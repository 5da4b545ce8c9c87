"""WebDataset tars: `key.jpg` beside `key.wnid` or `key.cls`, read at random by an index.

A key ends at the first dot of the base name, as WebDataset says, but where the names of a tar only
make sense otherwise: see `_key_of`.

Listing a tar reads all its headers, of a tar in a bucket all its bytes. So it is done once: the
index is kept in the user's cache, and `distill prepare` leaves one beside each tar that it writes.
"""

import hashlib
import io
import json
import re
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BufferedReader
from pathlib import Path, PurePosixPath

import numpy as np

from distill.data.formats.samples import (
    IMAGE_SUFFIXES,
    ROW,
    Sample,
    SampleTable,
    label_of_text,
)
from distill.data.formats.skipped import (
    HIDDEN,
    NO_IMAGE,
    SECOND_IMAGE,
    SUFFIX,
    Skipped,
)
from distill.data.formats.tar_members import TarMember, members, open_tar
from distill.data.sample_ids import normal_key
from distill.data.splits import is_hidden
from distill.errors import DataError, DataUnavailableError
from distill.files import write_atomically
from distill.storage.locations import place_of

MAX_LABEL_BYTES = 256
MAX_INDEX_BYTES = 4 * 2**30
PROBE_BYTES = 8192
TARS_AT_ONCE = 8
FORMAT = "distill-tar-index/2"
WNID_IN_NAME = re.compile(r"^(n\d{8})_")
LABEL_SUFFIXES = (".wnid", ".cls")


def list_tars(tars: Sequence[str], indexes: Path | None, skipped: Skipped) -> SampleTable:
    """The images of all, tar after tar.

    indexes: folder to keep indexes in; None for none. skipped: counts what is no image.

    Raises:
        DataError: one is not a complete uncompressed tar, or has two images of one key.
    """
    with ThreadPoolExecutor(TARS_AT_ONCE) as pool:  # a bucket answers slowly, but many at once
        listed = list(pool.map(lambda tar: _table_of(tar, indexes), tars))
    for _, of_tar in listed:
        skipped.update(of_tar)
    return SampleTable.concatenate([table for table, _ in listed])


def list_tar(file: BufferedReader, path: str, skipped: Skipped) -> Iterator[Sample]:
    """The images of one tar; labels may stand anywhere in it."""
    images: list[TarMember] = []
    labels: dict[str, str | int | None] = {}
    stems: set[str] = set()  # of members with one dot: what WebDataset's rule surely means
    for member in members(file, path, skipped):
        name = normal_key(member.name)
        stem, suffix = _split(name)
        hidden = any(is_hidden(part) for part in name.split("/") if part != "..")
        if hidden:
            skipped.add(HIDDEN, name)
        elif suffix in IMAGE_SUFFIXES:
            images.append(member)
        elif suffix in LABEL_SUFFIXES:
            labels[name] = _read_label(file, member, path)
        else:
            skipped.add(SUFFIX, name)
        if not hidden and _first_dot(name) == stem:
            stems.add(stem)
    chosen: dict[str, TarMember] = {}
    for member in sorted(images, key=lambda member: member.name.count(".")):
        name = normal_key(member.name)
        key = _key_of(name, labels, stems)
        if key not in chosen:
            chosen[key] = member
        elif _split(name)[0] == key or _split(normal_key(chosen[key].name))[0] != key:
            raise DataError(
                f"{path}: {chosen[key].name!r} and {member.name!r} are both images of the key "
                f"{key!r}, expected one; rename one, or name their labels like the images"
            )
        else:
            skipped.add(SECOND_IMAGE, name)
    used: set[str] = set()
    for key, member in chosen.items():
        guess = WNID_IN_NAME.match(PurePosixPath(key).name)
        label: str | int | None = guess.group(1) if guess else None
        named = next((n for n in (f"{key}{s}" for s in LABEL_SUFFIXES) if n in labels), None)
        if named:
            label = labels[named]
            used |= {f"{key}{suffix}" for suffix in LABEL_SUFFIXES}
        yield Sample(
            key, label, path, offset=member.offset, size=member.size, guessed=named is None
        )
    skipped.add(NO_IMAGE, *(name for name in labels if name not in used))


def _key_of(name: str, labels: Container[str], stems: Container[str]) -> str:
    """The key of an image's name.

    It ends at the first dot. Of a name with several it ends at the last one where a label is named
    so too (IMG.07.jpg beside IMG.07.cls), or where nothing else in the tar is called like the part
    before the first (IMG.07.jpg alone); else the image is a part of that sample (x.left.jpg of x).
    """
    stem = _split(name)[0]
    first = _first_dot(name)
    named = any(f"{stem}{suffix}" in labels for suffix in LABEL_SUFFIXES)
    return stem if named or first not in stems else first


def _split(name: str) -> tuple[str, str]:
    """At the last dot of the base name; the suffix in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return (f"{folder}{slash}{stem}", f".{suffix}".lower()) if dot else (name, "")


def _first_dot(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def _read_label(file: BufferedReader, member: TarMember, path: str) -> str | int | None:
    """What a member says: a number is a class index, in a .wnid too; None where it is empty."""
    here = file.tell()
    file.seek(member.offset)
    content = file.read(min(member.size, MAX_LABEL_BYTES + 1))
    file.seek(here)
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: {member.name!r} holds {content[:20]!r}, expected a label in UTF-8"
        ) from error
    if len(content) > MAX_LABEL_BYTES or "\n" in text:
        raise DataError(
            f"{path}: {member.name!r} holds {len(content)} bytes, expected one label: a wnid, a "
            "class index or the name of a class"
        )
    return label_of_text(text)


# -- the index ------------------------------------------------------------------------------------


def _table_of(tar: str, indexes: Path | None) -> tuple[SampleTable, Skipped]:
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
        skipped = Skipped()
        table = SampleTable.of(list_tar(file, tar, skipped))
    if kept:
        with suppress(OSError):  # no right to write there, or no room: listed again next time
            write_atomically(kept, index_of(table, stamped, skipped))
    return table, skipped


def index_path(tar: str) -> str:
    """Where the index beside a tar is, if there is one."""
    folder, _, name = tar.rpartition("/")
    return f"{folder}/.{name}.index" if folder else f".{name}.index"


def index_of(table: SampleTable, identity: str, skipped: Skipped) -> bytes:
    """A tar's index as a file: NumPy's .npz of the table, and which tar it is of."""
    head = {
        "format": FORMAT,
        "identity": identity,
        "labels": table.labels,
        "suffixes": table.suffixes,
        "skipped": skipped.to_json(),
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.frombuffer(json.dumps(head).encode(), np.uint8),
        rows=table.rows,
        keys=np.frombuffer(table.keys, np.uint8),
    )
    return buffer.getvalue()


def _read_index(path: str, identity: str, tar: str) -> tuple[SampleTable, Skipped] | None:
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
        skipped = Skipped.from_json(head["skipped"])
        possible = _is_possible(table, int(identity.partition(" ")[0]))
        return (table, skipped) if possible else None
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
