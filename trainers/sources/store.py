"""A store as a `TargetSource`: decoded views behind sample ids.

Views are resident, shared by all processes of the machine, where two of them fit the cache: the one
in use and the next, which is decoded in the background. Otherwise they are streamed, and samples
should come in the order that `sample_order` gives.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distill.data.order import SampleOrder
from distill.data.sample_ids import SampleIds, find_rows, samples_digest
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.errors import DataError, StoreMismatchError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.per_process import per_process
from distill.store.format.codes import codes_of, record_dtype
from distill.store.logit_store import LogitStore
from distill.store.upkeep.changed_data import changed_data
from distill.store.views.cache import Cache
from distill.store.views.lookup import RowIndex, open_row_index
from distill.store.views.resident import ResidentView, open_resident_view, resident_bytes
from distill.store.views.stream import StreamedView
from distill.targets.protocol import ReplayProofs
from distill.targets.rows import TargetRows
from distill.targets.tensors import SparseTargets, View

STREAM_WINDOW_BLOCKS = 8  # rows of this many blocks are shuffled together

Mode = Literal["resident", "streamed"]


def stored_proofs(store: LogitStore) -> ReplayProofs | None:
    """What the certificate of a complete store holds; None where it holds none."""
    proofs = store.require_complete()["replay"]
    manifest = store.manifest
    return proofs and ReplayProofs(
        where=store.location,
        proofs=proofs,
        views=manifest.views.drawn,
        size=manifest.teacher.input_size,
        provenance=manifest.provenance,
    )


class StoreTargets:
    """Targets of a complete store. It can be pickled, and used by processes that are forked.

    mode: None is resident where the cache holds two views, streamed elsewhere. kept: how many views
    are held open at a time; None is all of them where the cache holds all, else the one in use.
    """

    def __init__(
        self,
        store: LogitStore,
        cache: Cache,
        mode: Mode | None = None,
        *,
        kept: int | None = None,
    ) -> None:
        self.fidelity: Mapping[str, Any] | None = store.require_complete()["fidelity"]
        self.store, self.cache = store, cache
        self.location, self.identity = store.location, store.manifest.identity
        self.rows, self.answers = store.manifest.dataset.rows, store.manifest.answers
        self.hierarchy = SemanticHierarchy.from_json(store.hierarchy)
        store.manifest.require(store.location, hierarchy_digest=self.hierarchy.digest)
        self.policy: ViewPolicy | None = ViewPolicy.from_json(store.manifest.views.policy)
        self.sizes: tuple[Size, ...] = ()
        self.ahead = 0
        self._index: RowIndex = open_row_index(store, cache)
        room = cache.room() // resident_bytes(store)
        self.mode: Mode = mode or ("resident" if min(2, self.views) <= room else "streamed")
        all_fit = self.mode == "resident" and self.views <= room
        self.kept = kept or (self.views if all_fit else 1)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.location, self.identity, self.cache, self.mode, self.kept)

    @property
    def views(self) -> int:
        """V; epoch e uses view e mod V."""
        return self.store.manifest.views.count

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher saw."""
        return self.store.manifest.teacher.input_size

    def require_dataset(self, source: ImageSource, labels: NDArray[np.int64]) -> None:
        """See `distill.targets.protocol`; says what differs."""
        if samples_digest(source.ids, labels) == self.store.manifest.dataset.digest:
            return
        rows = find_rows(self.store.sample_ids, source.ids)
        if absent := np.flatnonzero(rows < 0).tolist():
            raise StoreMismatchError(
                f"{self.location}: lacks {len(absent)} of the {len(source)} samples in "
                f"{source.location} (first: {source.samples[absent[0]].key!r}), expected all of "
                f"them: {changed_data(self.store, source.ids, labels)}"
            )
        stored = self.store.labels[rows]
        if other := np.flatnonzero(stored != labels).tolist():
            first, names = other[0], [*self.hierarchy.synsets, "no label"]
            raise StoreMismatchError(
                f"{self.location}: {len(other)} of {len(source)} samples have another label than "
                f"in {source.location} (first: {source.samples[first].key!r}, "
                f"{names[stored[first]]} there and {names[labels[first]]} here), expected the "
                "same; train on the data as it was, with new labels in a list for --samples"
            )
        raise StoreMismatchError(
            f"{self.location}: holds {len(self.store.sample_ids)} samples, of which "
            f"{source.location} has {len(source)}, expected the same data; to train on some of it "
            f"alone, give the whole data and --samples, or "
            f"shrink the store: {changed_data(self.store, source.ids, labels)}"
        )

    def replay_proofs(self) -> ReplayProofs | None:
        """See `distill.targets.protocol`."""
        return stored_proofs(self.store)

    def view(self, epoch: int) -> int:
        """See `distill.targets.protocol`."""
        return epoch % self.views

    def drawn_view(self, epoch: int) -> int:
        """See `distill.targets.protocol`."""
        return self.store.manifest.views.first + self.view(epoch)

    def sample_order(self, rows: int, seed: int) -> SampleOrder:
        """The order in which samples are read fast: shuffled as a whole, or within some blocks."""
        if self.mode == "resident":
            return SampleOrder(rows, seed)
        manifest = self.store.manifest
        return SampleOrder(
            rows,
            seed,
            block_rows=manifest.block_rows,
            window=STREAM_WINDOW_BLOCKS,
        )

    def fetch(
        self, sample_ids: SampleIds, view: View, pixels: Sequence[Tensor] = ()
    ) -> SparseTargets:
        """See `distill.targets.tensors.TargetSource`."""
        rows = self._index.rows(sample_ids)
        if (rows < 0).any():
            raise DataError(
                f"{self.store.location}: {int((rows < 0).sum())} of {len(rows)} samples are not in "
                "the store; precompute the data set that the student trains on"
            )
        return SparseTargets.from_rows(
            self._views.gather(rows, view), self.store.manifest.slots, self.answers
        )

    def announce(self, sample_ids: SampleIds, view: View, pixels: Sequence[Tensor] = ()) -> None:
        """Reading takes no time."""

    def prepare(self, epoch: int) -> None:
        """Decode that epoch's view in the background, to be there when it is asked for."""
        if self.mode == "resident":
            self._views.prepare(self.view(epoch))

    @per_process
    def _views(self) -> "_OpenViews":
        return _OpenViews(self)


class _OpenViews:
    """The views that a process has open, the least recently used first."""

    def __init__(self, targets: StoreTargets) -> None:
        self.store, self.cache = targets.store, targets.cache
        self.mode, self.kept = targets.mode, targets.kept
        self._open: OrderedDict[int, ResidentView | StreamedView] = OrderedDict()
        self._next: tuple[int, Future[ResidentView]] | None = None
        self._background = ThreadPoolExecutor(1, thread_name_prefix="next-view")
        self._lock = threading.Lock()

    def gather(self, rows: NDArray[np.int64], view: View) -> TargetRows:
        """Those rows, in that order: of one view, or of one each."""
        if np.ndim(view) and np.shape(view) != rows.shape:
            raise ValueError(f"{np.shape(view)} views found for {len(rows)} rows, expected as many")
        views = np.unique(view)
        if len(views) == 1:
            records = self._of(int(views[0])).records_of(rows)
        else:
            records = np.empty(len(rows), record_dtype(self.store.manifest.coding))
            for each in views:
                mine = np.flatnonzero(view == each)
                records[mine] = self._of(int(each)).records_of(rows[mine])
        return self.store.manifest.coding.dequantise(codes_of(records))

    def prepare(self, view: int) -> None:
        """Decode it in the background."""
        with self._lock:
            if view not in self._open and (not self._next or self._next[0] != view):
                future = self._background.submit(
                    open_resident_view, self.store, view, self.cache, workers=1
                )
                self._next = (view, future)

    def _of(self, view: int) -> ResidentView | StreamedView:
        with self._lock:
            if view not in self._open:
                while len(self._open) >= self.kept:
                    self._open.popitem(last=False)  # lets the cache have its bytes back
                self._open[view] = self._opened(view)
            self._open.move_to_end(view)
            return self._open[view]

    def _opened(self, view: int) -> ResidentView | StreamedView:
        if self.mode == "streamed":
            return StreamedView(self.store, view, capacity=STREAM_WINDOW_BLOCKS)
        coming, self._next = self._next, None
        if coming and coming[0] == view:
            return coming[1].result()
        return open_resident_view(self.store, view, self.cache)


def _opened_again(
    location: str, identity: str, cache: Cache, mode: Mode, kept: int
) -> StoreTargets:
    """In another process. Raises StoreMismatchError where another store lies there now."""
    store = LogitStore.open(location)
    if store.manifest.identity != identity:
        raise StoreMismatchError(
            f"{location}: another store was put there meanwhile, expected {identity[:12]}; "
            "open it again"
        )
    return StoreTargets(store, cache, mode, kept=kept)
