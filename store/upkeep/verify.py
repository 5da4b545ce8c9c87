"""Verify that every byte of a store is what was written.

Reads all: documents, commits, samples, every chunk of every view. `distill.store.upkeep.repair`
puts right what it finds.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from distill.errors import CorruptStoreError, StoreError
from distill.store.format.codes import Codes
from distill.store.format.documents import damaged_documents
from distill.store.format.manifest import FORMAT_VERSION
from distill.store.format.root import COPY_KEY, ROOT_KEY, Root, read_root_or_copy
from distill.store.logit_store import LogitStore
from distill.store.places.objects import Objects, open_objects
from distill.store.summary import missing_blocks
from distill.store.views.resident import decoders


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found. Block numbers with a view stand for one chunk of each answer array.

    missing: which are pending, and whose they are, in words. problems: a line for everything that
    is wrong, blocks included. repairable: of the format that is written today.
    """

    location: str
    repairable: bool
    complete: bool
    rows: int
    views: int
    blocks_read: int
    bad_blocks: tuple[int, ...]
    pending_blocks: int
    missing: tuple[str, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong; an unfinished store may be fine."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"ok": self.ok, **asdict(self)}


def verify(location: str, tick: Callable[[int], None] = lambda blocks: None) -> Verification:
    """Read everything, check every digest, count and range.

    Raises:
        StoreError: no store is there, or the root and its copy are both beyond reading.
    """
    objects = open_objects(location)
    root, problems = _readable_root(objects)
    problems += [
        f"{key} is missing or not what was written" for key in damaged_documents(objects, root)
    ]
    store = LogitStore(objects, root.manifest)
    for name, read in (
        ("sample_id or label", lambda: store.labels),
        ("the hierarchy", lambda: store.hierarchy),
        ("the commit records", lambda: _require_bad_lists(store, root)),
    ):
        try:
            read()
        except (StoreError, KeyError) as error:
            problems.append(_line(objects, error, name))
    missing: tuple[str, ...] = ()
    try:
        commits = store.commits_of(root)
        if len(commits) < root.manifest.num_blocks:
            missing = missing_blocks(store.records_of(root), root.manifest.num_blocks)
    except StoreError as error:
        problems.append(_line(objects, error, "the commits"))
        commits = {}
    bad: dict[int, str] = {}

    def check(block: int) -> None:
        try:
            views = store.read_block(block, commits[block])
            problem = next(filter(None, (_out_of_range(store, codes) for codes in views)), None)
        except CorruptStoreError as error:
            problem = _line(objects, error, "")
        if problem:
            bad[block] = problem
        tick(1)

    with ThreadPoolExecutor(decoders(store)) as pool:
        list(pool.map(check, commits))
    return Verification(
        location=objects.location,
        repairable=root.manifest.version == FORMAT_VERSION,
        complete=root.certificate is not None,
        rows=root.manifest.dataset.rows,
        views=root.manifest.views.count,
        blocks_read=len(commits),
        bad_blocks=tuple(sorted(bad)),
        pending_blocks=root.manifest.num_blocks - len(commits),
        missing=missing,
        problems=(*problems, *(bad[block] for block in sorted(bad))),
    )


def _readable_root(objects: Objects) -> tuple[Root, list[str]]:
    try:
        root = Root.read(objects)
    except CorruptStoreError as error:
        return read_root_or_copy(objects.location), [_line(objects, error, "")]
    try:
        # A kill between the two leaves the copy one state ahead, which is no damage.
        copied = Root.read(objects, COPY_KEY).manifest.identity == root.manifest.identity
    except CorruptStoreError:
        copied = False
    return root, [] if copied else [f"{COPY_KEY} is not a copy of {ROOT_KEY}"]


def _require_bad_lists(store: LogitStore, root: Root) -> None:
    for block, record in store.records_of(root).items():
        if not isinstance(record.get("bad"), list):
            raise CorruptStoreError(f"the record of block {block} has no list of bad images")


def _out_of_range(store: LogitStore, codes: Codes) -> str | None:
    """What is impossible in a block whose digest matches: a fault of the writer."""
    manifest = store.manifest
    stop = 0
    sizes = manifest.hierarchy.classes_per_hierarchy
    for slots, classes in zip(manifest.slots, sizes, strict=True):
        start, stop = stop, stop + slots
        prob = codes.prob[:, start:stop].astype(np.int64)
        if (codes.index[:, start:stop] >= classes).any():
            return f"a class index is {classes} or more, expected less"
        if (np.diff(prob, axis=1) > 0).any() or (prob > manifest.encoding.prob_steps).any():
            return "probabilities do not fall from slot to slot"
    if (codes.confidence > manifest.coding.confidence_units).any():
        return "a confidence is more than 1"
    return None


def _line(objects: Objects, error: BaseException, part: str) -> str:
    text = str(error).removeprefix(f"{objects.location}: ")
    return f"{part}: {text}" if part and part not in text else text
