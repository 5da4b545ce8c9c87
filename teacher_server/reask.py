"""Ask the teacher about some stored rows again: does it still say what the store holds?"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distill.data import ImageSource, label_indices
from distill.errors import DataError
from distill.loader import ViewRequest, load_views
from distill.sample_id import samples_digest
from distill.targets import encode
from distill.views import ViewPolicy
from store.algebra import RowReader
from store.logit_store import LogitStore
from store.manifest import DatasetIdentity
from teacher_server.teacher import Teacher

# Codes apart by one are rounding; more is another answer.
MAX_STEPS_APART = 1
ROWS_A_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class AskedAgain:
    """steps_apart: largest difference of a stored probability, in the encoding's steps."""

    images: int
    views: int
    steps_apart: int
    rows_apart: int
    confidence_apart: float

    @property
    def ok(self) -> bool:
        """Whether the differences are those of rounding."""
        return self.rows_apart == 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        says = (
            f"{self.images} images × {self.views} views asked again; {self.rows_apart} differ by "
            f"more than rounding (at most {self.steps_apart} steps of probability, "
            f"{self.confidence_apart:.5f} of confidence)"
        )
        return {"ok": self.ok, "says": says, **asdict(self)}


def ask_again(
    location: str, *, source: ImageSource, teacher: Teacher, sample: int, workers: int
) -> AskedAgain:
    """Compare `sample` rows, spread evenly over the store, in all their views.

    Raises:
        StoreMismatchError: teacher or data set are not the store's.
        DataError: an image of the sample cannot be read.
    """
    store = LogitStore.open(location)
    manifest, hierarchy = store.manifest, teacher.hierarchy
    source = source.limited(manifest.dataset.rows)
    labels = label_indices(source, hierarchy)
    manifest.require(
        location,
        teacher_fingerprint=teacher.identity.fingerprint,
        hierarchy_digest=hierarchy.digest,
        dataset=DatasetIdentity(digest=samples_digest(source.ids, labels), rows=len(source)),
    )
    store.require_complete()
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).astype(np.int64))
    drawn = manifest.views.drawn
    requests = [
        [ViewRequest(int(row), drawn) for row in rows[i : i + ROWS_A_BATCH]]
        for i in range(0, len(rows), ROWS_A_BATCH)
    ]
    policy = ViewPolicy.from_json(manifest.views.policy)
    readers = [RowReader(store, view) for view in range(len(drawn))]
    steps, rows_apart, confidence = 0, 0, 0.0
    for batch in load_views(source, policy, teacher.input.size, requests, workers=workers):
        for row, reason in batch.bad.items():
            key = source.samples[row].key
            raise DataError(f"{source.location}: {key!r}: {reason}; expected the stored image")
        for view, reader in enumerate(readers):
            logits = teacher.logits(batch.pixels[:, view])
            said = manifest.coding.quantise(
                encode(logits, hierarchy, manifest.encoding).to_answers()
            )
            stored = reader.rows(np.array(batch.rows))
            seen = stored.valid
            # Slot by slot: entries of equal probability may have changed places.
            apart = np.abs(said.prob.astype(np.int64) - stored.prob.astype(np.int64)).max(1)[seen]
            steps = max(steps, int(apart.max(initial=0)))
            rows_apart += int((apart > MAX_STEPS_APART).sum())
            units = manifest.coding.confidence_units
            differs = said.confidence[seen] / units - stored.confidence[seen] / units
            confidence = max(confidence, float(np.abs(differs).max(initial=0)))
    return AskedAgain(
        images=len(rows),
        views=len(drawn),
        steps_apart=steps,
        rows_apart=rows_apart,
        confidence_apart=confidence,
    )
