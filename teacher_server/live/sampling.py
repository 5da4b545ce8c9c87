"""Samples of a data set, asked for by id: answered from a store, or drawn, computed and kept.

With a store that is complete, answers come from its decoded views. With one that is not, and with
the data, what is missing is computed on request and written through (`store.spool`); a block is
committed once all of its rows were asked for in all views, and `distill precompute` on the same
store fills what nobody asked for. With data alone, every request is computed.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.answers import Answers
from distill.data import ImageSource, label_indices, open_source, read_image
from distill.encoding import EncodingSpec
from distill.errors import ConfigError, DataError, StoreError, first_line, printable
from distill.journal import Journal
from distill.loader import in_batches, load_views
from distill.sample_id import SampleIds, find_rows, samples_digest
from distill.views import ViewPolicy
from store.cache import Cache
from store.codes import Codes
from store.logit_store import LogitStore, has_store
from store.lookup import open_row_index
from store.manifest import DatasetIdentity
from store.resident import ResidentView, open_resident_view
from store.spool import Spool
from teacher_server.audit import REPLAY_ROWS
from teacher_server.live.decoding import Bad, Decoded, Decoder, Status
from teacher_server.live.refusal import unavailable
from teacher_server.precompute import (
    PrecomputeOptions,
    compute,
    finish_if_whole,
    open_or_create,
    versions,
)
from teacher_server.teacher import Teacher


def open_samples(
    teacher: Teacher,
    options: PrecomputeOptions,
    *,
    store: str | None,
    data: Path | None,
    split: str,
    cache: Path,
    journal: Journal,
) -> "SampleAnswers":
    """What `distill serve` says of samples. A store that is there has its own views and encoding.

    Raises:
        StoreMismatchError: the store is of another teacher, hierarchy or data set.
        ConfigError: there is no store yet, and no data to fill one from.
    """
    source = open_source(data, split) if data else None
    opened = None
    if store and has_store(store):
        opened = LogitStore.open(store)
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
        options = replace(options, policy=ViewPolicy.from_json(opened.manifest.views.policy))
    elif store and source:
        opened = open_or_create(source, teacher, store, options)
    elif store:
        raise ConfigError(f"{store}: no store found; expected one, or --data to fill it from")
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
class Found:
    """rows: of the data set, -1 where it has no such sample; views: as the store counts them.

    known: [n] whether `answers` holds the answer. bad: elements that cannot be answered.
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    known: NDArray[np.bool_]
    answers: Answers
    bad: dict[int, Bad]

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
        self._lock = threading.Lock()
        self._resident: dict[int, ResidentView] = {}
        self._index = open_row_index(store, cache) if store else None
        self._spool: Spool | None = None
        self._rows = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._blocks = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._ending = False
        if store and store.certificate is None:
            self._spool = Spool(store, cache.folder)
            if source:
                self._commit(self._spool.whole_blocks())

    @property
    def views(self) -> int | None:
        """How many there are; None for any number."""
        return self.store.manifest.views.count if self.store else None

    @property
    def dataset(self) -> dict[str, Any]:
        """Which images, tagged as what: digest and rows, as in a manifest."""
        if self.store:
            return asdict(self.store.manifest.dataset)
        assert self.source is not None
        labels = label_indices(self.source, self.teacher.hierarchy)
        return {"digest": samples_digest(self.source.ids, labels), "rows": len(self.source)}

    @cached_property
    def replay(self) -> dict[str, Any]:
        """Proofs of the views of the first rows, for a student to draw them again."""
        if self.store and (certificate := self.store.certificate):
            manifest = self.store.manifest
            return {
                "proofs": certificate["replay"],
                "views": list(manifest.views.drawn),
                "provenance": dict(manifest.provenance),
            }
        if self.source is None:
            return {"proofs": {}, "views": [], "provenance": {}}
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
        return {"proofs": proofs, "views": list(views), "provenance": versions()}

    @property
    def first_view(self) -> int:
        """The number by which the policy draws view 0."""
        return self.store.manifest.views.first if self.store else 0

    async def look_up(self, ids: SampleIds, views: NDArray[np.int64], *, stored: bool) -> Found:
        """What is known of those samples. stored: answers of the store will do.

        Raises:
            Refused: 503, the store cannot be read now.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._look_up, ids, views, stored)

    def _look_up(self, ids: SampleIds, views: NDArray[np.int64], stored: bool) -> Found:
        if self._index:
            rows = self._index.rows(ids)
        else:
            assert self.source is not None
            rows = find_rows(self.source.ids, ids)
        bad = {
            int(i): Bad(Status.UNKNOWN_SAMPLE, "the data set has no such sample")
            for i in np.flatnonzero(rows < 0)
        }
        last = self.views or 2**31
        for i in np.flatnonzero((views < 0) | (views >= last)):
            bad[int(i)] = Bad(
                Status.UNKNOWN_SAMPLE, f"view {views[i]} asked for, expected 0 to {last - 1}"
            )
        known = np.zeros(len(ids), np.bool_)
        answers = self._empty(len(ids))
        sound = np.array([i for i in range(len(ids)) if i not in bad], np.int64)
        if self.store and stored and len(sound):
            try:
                self._read(sound, rows, views, known, answers)
            except StoreError as error:
                raise unavailable(str(error), "store") from error
            for i in np.flatnonzero(known & ~answers.valid):
                bad[int(i)] = Bad(Status.UNREADABLE, "its image could not be read for the store")
                known[i] = False
        if self.source is None:
            for i in sound[~known[sound]]:
                bad.setdefault(
                    int(i),
                    Bad(Status.UNKNOWN_SAMPLE, "the store has no such answer, and no images"),
                )
        return Found(rows=rows, views=views, known=known, answers=answers, bad=bad)

    def _read(
        self,
        sound: NDArray[np.int64],
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        known: NDArray[np.bool_],
        answers: Answers,
    ) -> None:
        """Put what the store or the spool has into `answers`."""
        assert self.store is not None
        if self._spool:
            codes, here = self._spool.read(rows[sound], views[sound])
            known[sound] = here
            answers.put(sound, self.store.manifest.coding.dequantise(codes))
            return
        for view in np.unique(views[sound]):
            mine = sound[views[sound] == view]
            answers.put(mine, self._view(int(view)).gather(rows[mine]))
            known[mine] = True

    def _view(self, view: int) -> ResidentView:
        assert self.store is not None
        with self._lock:
            if view not in self._resident:
                self._resident[view] = open_resident_view(self.store, view, self.cache)
            return self._resident[view]

    def _empty(self, rows: int) -> Answers:
        hierarchies = self.teacher.hierarchy.num_hierarchies
        return Answers.empty(rows, sum(self.encoding.entries), hierarchies)

    async def draw(self, decoder: Decoder, found: Found, useless: Any) -> Decoded:
        """The images of what is missing, as the policy draws them."""
        assert self.source is not None
        missing = found.missing
        numbers = found.views[missing] + self.first_view
        return await decoder.samples(
            self.source, self.policy, found.rows[missing], numbers, useless
        )

    def keep(self, found: Found, elements: NDArray[np.int64], answers: Answers) -> None:
        """Write through what was computed for those elements; rows that are not valid as well."""
        if self._spool and len(elements):
            codes = self._spool.manifest.coding.quantise(answers.taken(elements))
            self._rows.submit(self._write, found.rows[elements], found.views[elements], codes)

    def _write(self, rows: NDArray[np.int64], views: NDArray[np.int64], codes: Codes) -> None:
        assert self._spool is not None
        try:
            self._commit(self._spool.write(rows, views, codes))
        except Exception as error:  # answers go on without being kept
            self.journal.event("not written through", rows=len(rows), text=first_line(error))

    def _commit(self, blocks: Sequence[int]) -> "list[Future[None]]":
        return [self._blocks.submit(self._commit_block, block) for block in blocks]

    def _commit_block(self, block: int) -> None:
        """Write a whole block into the store, and certify the store by its last one.

        Block 0 holds the audit, which needs exact answers: it is computed once more.
        """
        assert self.store is not None
        assert self._spool is not None
        assert self.source is not None
        if self._ending:
            return  # it is in the spool, and is found there next time
        try:
            if block == 0:
                compute(
                    self.store,
                    self.source,
                    self.teacher,
                    self.options,
                    [0],
                    rows=len(self.store.manifest.rows_of_block(0)),
                    journal=self.journal,
                    on_batch=self._go_on,
                    stopping=lambda: False,
                )
            else:
                speed = {"batch_size": self.options.batch_size, "compiled": False}
                facts = {"bad": self._bad_rows(block), "speed": speed}
                self.store.write_codes(block, self._spool.codes(block), facts)
            self.journal.event("block written", block=block)
            if not finish_if_whole(self.store, self.journal):
                self._spool.discard()
        except Exception as error:  # it stays in the spool
            self.journal.event("block not written", block=block, text=first_line(error))

    def _go_on(self, images: int, bad: dict[str, str]) -> None:
        if self._ending:
            raise DataError("the server ends")

    def _bad_rows(self, block: int) -> list[dict[str, str]]:
        assert self._spool is not None
        assert self.source is not None
        first = self._spool.manifest.rows_of_block(block).start
        bad = []
        for place in np.flatnonzero(~self._spool.codes(block)[0].valid):
            sample = self.source.samples[first + int(place)]
            try:
                read_image(sample)
                reason = "cannot be read: for a while"
            except DataError as error:
                reason = str(error)
            bad.append({"key": printable(sample.key), "reason": printable(reason)})
        return bad

    def close(self) -> None:
        """Flush: what was computed is in the spool, on the disk."""
        self._ending = True
        self._rows.shutdown(wait=True)
        self._blocks.shutdown(wait=True)
        if self._spool:
            self._spool.close()
