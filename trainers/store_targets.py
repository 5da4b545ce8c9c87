"""A store as a `TargetSource`: resident views behind sample ids."""

from pathlib import Path

from distill.errors import DataError
from distill.hierarchy import SemanticHierarchy
from distill.sample_id import SampleIds, find_rows
from distill.targets import SparseTargets
from store.logit_store import LogitStore
from store.resident import ResidentView, open_resident_view


class StoreTargets:
    """Targets of a complete store. Keeps the view in use mapped; opening another builds it once."""

    def __init__(self, store: LogitStore, cache: Path) -> None:
        store.require_complete()
        self.store, self.cache = store, cache
        self.hierarchy = SemanticHierarchy.from_json(store.hierarchy)
        store.manifest.require(str(store.path), hierarchy_digest=self.hierarchy.digest)
        self._resident: ResidentView | None = None

    @property
    def views(self) -> int:
        """V; epoch e uses view e mod V."""
        return self.store.manifest.views.count

    def fetch(self, sample_ids: SampleIds, view: int) -> SparseTargets:
        """See `distill.targets.TargetSource`."""
        rows = find_rows(self.store.sample_ids, sample_ids)
        if (rows < 0).any():
            raise DataError(
                f"{self.store.path}: {int((rows < 0).sum())} of {len(rows)} samples are not in the "
                "store; precompute the data set that the student trains on"
            )
        if self._resident is None or self._resident.view != view:
            self._resident = open_resident_view(self.store, view, self.cache)
        return SparseTargets.from_answers(self._resident.gather(rows), self.store.manifest.slots)
