"""Run the teacher again on some stored rows and compare."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distill.data.loader import ViewBatch, in_batches, load_views
from distill.data.sample_ids import samples_digest
from distill.data.source import ImageSource, label_indices
from distill.data.view_policy import ViewPolicy
from distill.errors import DataError
from distill.store.format.manifest import DatasetIdentity
from distill.store.logit_store import LogitStore
from distill.store.upkeep.compare import steps_apart
from distill.store.upkeep.reader import RowReader
from distill.targets.tensors import sparsify
from distill.teacher_server.teacher.teacher import Teacher

# What is rounding and no other answer, by precision: probability beyond one step, and confidence.
# A logit of 8 to 16 has 0.06 between neighbours in bfloat16, which moves a probability by 0.016.
PROB_APART = {"float32": 0.0, "bfloat16": 0.06}
CONFIDENCE_APART = {"float32": 5e-4, "bfloat16": 0.06}
ROWS_A_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class SpotCheck:
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
) -> SpotCheck:
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
    requests = in_batches(rows, drawn, ROWS_A_BATCH)
    policy = ViewPolicy.from_json(manifest.views.policy)
    readers = [RowReader(store, view) for view in range(len(drawn))]
    steps, rows_apart, confidence = 0, 0, 0.0
    precision = manifest.teacher.precision
    most_steps = 1 + round(PROB_APART[precision] * manifest.encoding.prob_steps)
    most_confidence = CONFIDENCE_APART[precision]
    for batch in load_views(source, policy, teacher.sizes, requests, workers=workers):
        _require_bad_as_stored(source, batch, readers[0])
        if not batch.rows:
            continue
        for view, reader in enumerate(readers):
            exact = teacher.targets([pixels[:, view] for pixels in batch.pixels])
            predicted = manifest.coding.quantise(
                sparsify(exact, hierarchy, manifest.encoding).to_rows()
            )
            stored = reader.rows(np.array(batch.rows))
            seen = stored.valid
            apart = steps_apart(manifest, predicted, stored)[seen]
            steps = max(steps, int(apart.max(initial=0)))
            units = manifest.coding.confidence_units
            differs = np.abs(predicted.confidence[seen] / units - stored.confidence[seen] / units)
            confidence = max(confidence, float(differs.max(initial=0)))
            too_far = (apart > most_steps) | (differs.max(1) > most_confidence)
            rows_apart += int(too_far.sum())
    return SpotCheck(
        images=len(rows),
        views=len(drawn),
        steps_apart=steps,
        rows_apart=rows_apart,
        confidence_apart=confidence,
    )


def _require_bad_as_stored(source: ImageSource, batch: ViewBatch, reader: RowReader) -> None:
    """An image that could not be read then may not be read now, but no other."""
    for row, reason in sorted(batch.bad.items()):
        if reader.rows(np.array([row])).valid[0]:
            key = source.samples[row].key
            raise DataError(f"{source.location}: {key!r}: {reason}; expected the stored image")
