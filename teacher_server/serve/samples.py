"""Samples requested by id: answered from a store, or drawn, computed and kept.

With a store that is complete, answers come from its decoded views. With one that is not, and with
the data, what is missing is computed on request and written through
(`distill.teacher_server.serve.write_through`); a block is committed once all of its rows were asked
for in all views, and `distill precompute` on the same store fills what nobody asked for. With data
alone, every request is computed.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.loader import in_batches, load_views
from distill.data.sample_ids import SampleIds, find_rows, samples_digest
from distill.data.source import ImageSource, label_indices
from distill.data.view_policy import ViewPolicy
from distill.errors import ConfigError, CorruptStoreError, StoreError
from distill.events import Journal
from distill.store.format.manifest import DatasetIdentity
from distill.store.logit_store import LogitStore, has_store
from distill.store.views.cache import Cache
from distill.store.views.lookup import open_row_index
from distill.store.views.resident import ResidentView, open_resident_view
from distill.store.views.spool import Spool
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.teacher_server.precompute.audit import REPLAY_ROWS
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.run import open_or_create, versions
from distill.teacher_server.serve.decoding import Decoded, DecodeFailure, Decoder
from distill.teacher_server.serve.write_through import WriteThrough
from distill.teacher_server.teacher.teacher import Teacher
from distill.wire.refusal import unavailable
from distill.wire.status import Status

LOOK_UP_THREADS = 4


def require_store_or_data(store: str | None, has_data: bool) -> None:
    """That a store is there, or can be filled.

    Raises:
        ConfigError: neither.
    """
    if store and not (has_data or has_store(store)):
        raise ConfigError(f"{store}: no store found; expected one, or --data to fill it from")


def open_samples(
    teacher: Teacher,
    options: PrecomputeOptions,
    *,
    store: str | None,
    source: ImageSource | None,
    cache: Path,
    journal: Journal,
) -> "SampleAnswers":
    """What `distill serve` says of samples. A store that is there has its own views and encoding.

    Raises:
        StoreMismatchError: the store is of another teacher, hierarchy or data set.
        ConfigError: there is no store yet, and no data to fill one from.
    """
    require_store_or_data(store, source is not None)
    opened = None
    if store and has_store(store):
        opened = LogitStore.open(store)
        if source and ViewPolicy.from_json(opened.manifest.views.policy).frames:
            raise ConfigError(
                f"{store}: answers for clips found with --data, expected those for images; leave "
                "--data out, then a complete store answers alone"
            )
        dataset = None
        if source:
            labels = label_indices(source, teacher.hierarchy)
            dataset = DatasetIdentity(digest=samples_digest(source.ids, labels), rows=len(source))
        opened.manifest.require(
            opened.location,
            teacher_fingerprint=teacher.identity.fingerprint,
            hierarchy_digest=teacher.hierarchy.digest,
            dataset=dataset,
        )
        views = opened.manifest.views
        options = replace(
            options,
            policy=ViewPolicy.from_json(views.policy),
            views=views.count,
            first_view=views.first,
            block_rows=opened.manifest.block_rows,
        )
    elif store and source:
        opened = open_or_create(source, teacher, store, options)
    named = EncodingSpec.named(options.encoding, teacher.hierarchy.classes_per_hierarchy)
    return SampleAnswers(
        teacher,
        options,
        encoding=opened.manifest.encoding if opened else named,
        store=opened,
        source=source,
        cache=Cache(cache),
        journal=journal,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleLookup:
    """rows: of the data set, -1 where it has no such sample; views: as the store counts them.

    known: [n] whether `answers` holds the answer. bad: elements that cannot be answered.
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    known: NDArray[np.bool_]
    answers: TargetRows
    bad: dict[int, DecodeFailure]

    @property
    def missing(self) -> NDArray[np.int64]:
        """The elements that are to be computed."""
        return np.array(
            [i for i, known in enumerate(self.known) if not known and i not in self.bad], np.int64
        )


class SampleAnswers:
    """store, source: at least one of them, of the same data set and this teacher.

    options: how a block is computed as a whole.
    """

    def __init__(
        self,
        teacher: Teacher,
        options: PrecomputeOptions,
        *,
        encoding: EncodingSpec,
        store: LogitStore | None,
        source: ImageSource | None,
        cache: Cache,
        journal: Journal,
    ) -> None:
        if store is None and source is None:
            raise ValueError("neither a store nor images")
        self.teacher, self.options, self.journal = teacher, options, journal
        self.encoding = encoding
        self.store, self.source, self.cache = store, source, cache
        self.policy = options.policy
        self._lock, self._replaying = threading.Lock(), threading.Lock()
        self._resident: dict[int, Future[ResidentView]] = {}
        self._replay: dict[str, Any] | None = None
        self._store_is_away = False
        self._index = open_row_index(store, cache) if store else None
        self._threads = ThreadPoolExecutor(LOOK_UP_THREADS, thread_name_prefix="look-up")
        self._spool: Spool | None = None
        self._write_through: WriteThrough | None = None
        if store and store.certificate is None:
            self._spool = Spool(store, cache.folder)
            if source:
                self._write_through = WriteThrough(self._spool, source, teacher, options, journal)
                self._warn_of_little_room(cache.folder)

    def _warn_of_little_room(self, folder: Path) -> None:
        assert self._spool is not None
        free, most = self._spool.free_bytes, self._spool.most_bytes
        if free < most:
            self.journal.event(
                "little room",
                level="warning",
                text=f"{folder}: {free >> 20} MiB free, expected {most >> 20} for all answers of "
                "unfinished blocks; what has no room is computed, but not kept; free some, or pass "
                "another --cache",
            )

    @property
    def views(self) -> int | None:
        """How many there are; None for any number."""
        return self.store.manifest.views.count if self.store else None

    def about(self) -> dict[str, Any]:
        """Which samples, in which views: for the metadata."""
        return {
            "policy": self.policy.to_json(),
            "views": self.views,
            "first_view": self.first_view,
            "images": self.source is not None,
            "store": self.store.manifest.identity if self.store else None,
            "dataset": self.dataset,
        }

    @property
    def dataset(self) -> dict[str, Any]:
        """Which images, tagged as what: digest and rows, as in a manifest."""
        if self.store:
            return asdict(self.store.manifest.dataset)
        assert self.source is not None
        labels = label_indices(self.source, self.teacher.hierarchy)
        return {"digest": samples_digest(self.source.ids, labels), "rows": len(self.source)}

    def replay(self) -> dict[str, Any]:
        """Proofs of the views of the first rows, for a student to draw them again.

        Drawn once, unless images cannot be read now.
        """
        if self.store and (certificate := self.store.certificate):
            manifest = self.store.manifest
            return {
                "proofs": certificate["replay"],
                "views": list(manifest.views.drawn),
                "provenance": dict(manifest.provenance),
            }
        if self.source is None:
            return {"proofs": {}, "views": [], "provenance": {}}
        with self._replaying:
            if self._replay is None:
                views = tuple(self.first_view + view for view in range(self.views or 1))
                rows = range(min(REPLAY_ROWS, len(self.source)))
                (batch,) = load_views(
                    self.source,
                    self.policy,
                    self.teacher.sizes[:1],
                    in_batches(rows, views, len(rows), prove_below=REPLAY_ROWS),
                    workers=0,
                )
                proofs = {str(row): proofs for row, proofs in batch.proofs.items()}
                drawn = {"proofs": proofs, "views": list(views), "provenance": versions()}
                if batch.bad:
                    return drawn
                self._replay = drawn
            return self._replay

    @property
    def first_view(self) -> int:
        """The number by which the policy draws view 0."""
        return self.store.manifest.views.first if self.store else 0

    async def look_up(
        self, ids: SampleIds, views: NDArray[np.int64], *, stored: bool
    ) -> SampleLookup:
        """What is known of those samples. stored: answers of the store will do.

        Raises:
            Refused: 503, the store cannot be read now.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._look_up, ids, views, stored)

    def _look_up(self, ids: SampleIds, views: NDArray[np.int64], stored: bool) -> SampleLookup:
        if self._index:
            rows = self._index.rows(ids)
        else:
            assert self.source is not None
            rows = find_rows(self.source.ids, ids)
        bad = {
            int(i): DecodeFailure(Status.UNKNOWN_SAMPLE, "the data set has no such sample")
            for i in np.flatnonzero(rows < 0)
        }
        last = self.views or 2**31
        for i in np.flatnonzero((views < 0) | (views >= last)):
            bad[int(i)] = DecodeFailure(
                Status.UNKNOWN_SAMPLE, f"view {views[i]} asked for, expected 0 to {last - 1}"
            )
        known = np.zeros(len(ids), np.bool_)
        answers = self._empty(len(ids))
        sound = np.array([i for i in range(len(ids)) if i not in bad], np.int64)
        if self.store and stored and len(sound):
            try:
                self._read(sound, rows, views, known, answers)
            except StoreError as error:
                if self.source is None or isinstance(error, CorruptStoreError):
                    raise unavailable(str(error), "store") from error
                self._note_store(error)
            for i in np.flatnonzero(known & ~answers.valid):
                bad[int(i)] = DecodeFailure(
                    Status.UNREADABLE, "its image could not be read for the store"
                )
                known[i] = False
        if self.source is None:
            for i in sound[~known[sound]]:
                bad.setdefault(
                    int(i),
                    DecodeFailure(
                        Status.UNKNOWN_SAMPLE, "the store has no such answer, and no images"
                    ),
                )
        return SampleLookup(rows=rows, views=views, known=known, answers=answers, bad=bad)

    def _read(
        self,
        sound: NDArray[np.int64],
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        known: NDArray[np.bool_],
        answers: TargetRows,
    ) -> None:
        """Put what the store or the spool has into `answers`."""
        assert self.store is not None
        if self._spool:
            codes, here = self._spool.read(rows[sound], views[sound])
            if self._spool.away and self.source is None:
                raise self._spool.away
            self._note_store(self._spool.away)
            known[sound] = here
            answers.put(sound, self.store.manifest.coding.dequantise(codes))
            return
        for view in np.unique(views[sound]):
            mine = sound[views[sound] == view]
            answers.put(mine, self._view(int(view)).gather(rows[mine]))
            known[mine] = True
        self._note_store(None)

    def _note_store(self, error: StoreError | None) -> None:
        """While it cannot be read, all is computed."""
        if self._store_is_away != bool(error):
            self._store_is_away = bool(error)
            text = str(error) if error else f"{self.store and self.store.location}"
            level = "error" if error else "info"
            event = f"store {'cannot' if error else 'can'} be read"
            self.journal.event(event, level=level, text=text)

    def _view(self, view: int) -> ResidentView:
        """Decoded by whoever asks first; others wait for it, and for no other view."""
        assert self.store is not None
        with self._lock:
            first = view not in self._resident
            decoded = self._resident.setdefault(view, Future())
        if first:
            try:
                decoded.set_result(open_resident_view(self.store, view, self.cache))
            except BaseException as error:
                with self._lock:
                    del self._resident[view]  # it may be mended
                decoded.set_exception(error)
        return decoded.result()

    def _empty(self, rows: int) -> TargetRows:
        hierarchies = self.teacher.hierarchy.num_hierarchies
        return TargetRows.empty(rows, sum(self.encoding.entries), hierarchies)

    async def draw(
        self, decoder: Decoder, looked_up: SampleLookup, useless: Callable[[], bool]
    ) -> Decoded:
        """The images of what is missing, as the policy draws them."""
        assert self.source is not None
        missing = looked_up.missing
        numbers = looked_up.views[missing] + self.first_view
        return await decoder.samples(
            self.source, self.policy, looked_up.rows[missing], numbers, useless
        )

    def keep(
        self, looked_up: SampleLookup, elements: NDArray[np.int64], answers: TargetRows
    ) -> None:
        """Write through what was computed for those elements; images that are none as well."""
        if self._write_through:
            rows, views = looked_up.rows[elements], looked_up.views[elements]
            self._write_through.keep(rows, views, answers.select(elements))

    def look_after(self) -> None:
        """To be called every second."""
        if self._write_through:
            self._write_through.try_again()

    def close(self, within_s: float) -> bool:
        """Put what was computed on the disk; whether all threads came to their end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._write_through:
            return self._write_through.close(within_s)
        if self._spool:
            self._spool.close()
            self._spool = None
        return True
