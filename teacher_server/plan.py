"""What would a precompute take? A pilot on some images tells, before the GPUs are booked.

The pilot's rows are the first block of the store to come, a fair sample of the data set. Its
answers are written into real stores in a scratch folder, one for each encoding, and what these
weigh is extrapolated; only the samples' ids, which compress better the more there are, are drawn
anew.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.answers import Answers
from distill.data import ImageSource, label_indices
from distill.encoding import EncodingSpec
from distill.errors import ConfigError, DataError, TeacherError
from distill.fidelity import FidelityErrors, fidelity_errors, fidelity_figures
from distill.loader import ViewRequest, load_views
from distill.progress import progress
from distill.sample_id import SampleIds
from distill.targets import DenseTargets, SparseTargets, sparsify
from distill.views import ViewPolicy
from store.codes import ANSWER_ARRAYS
from store.layout import SAMPLE_CHUNK_ROWS, create_sample_arrays
from store.logit_store import LogitStore
from store.objects import Objects
from teacher_server.audit import FIDELITY_ROWS, REPLAY_ROWS
from teacher_server.precompute import PrecomputeOptions, manifest_for
from teacher_server.teacher import Teacher

PILOT_VIEWS = 2  # tells what a further view of a decoded image costs
COMMIT_BYTES, COMMIT_BYTES_A_VIEW = 40, 64  # compacted: two copies of a digest, host and time


@dataclass(frozen=True, kw_only=True)
class PlannedStore:
    """One encoding and number of views. bytes_per_view: of one image, everything included."""

    encoding: str
    views: int
    hours: float
    bytes_total: int
    bytes_per_view: float
    gradient_angle_deg: dict[str, float]
    near_teacher_angle_deg: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """seconds_per_image: reading and decoding; seconds_per_view: rendering and the teacher."""

    rows: int
    pilot_images: int
    pilot_unreadable: int
    seconds_per_image: float
    seconds_per_view: float
    stores: tuple[PlannedStore, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Pilot:
    answers: dict[str, list[Answers]]  # by encoding, of each view
    errors: dict[str, list[FidelityErrors]]
    replay: dict[str, list[str]]
    seconds: float
    unreadable: int


def make_plan(
    *,
    source: ImageSource,
    teacher: Teacher,
    policy: ViewPolicy,
    encodings: Sequence[str],
    views: Sequence[int],
    rows: int | None = None,
    pilot_images: int | None = None,
    block_rows: int = 8192,
    batch_size: int = 64,
    workers: int = 2,
) -> Plan:
    """Run the pilot and extrapolate to `rows` images; None is as many as the source has.

    pilot_images: None is one block.

    Raises:
        DataError: no image of the pilot can be read.
        ConfigError: no rows or no views are asked for.
    """
    pilot = source.limited(min(pilot_images or block_rows, block_rows))
    rows = rows or len(source)
    if min(len(pilot), rows, *views) < 1:
        raise ConfigError(f"{rows} rows and views {list(views)} found, expected at least 1 of each")
    pilot_views = 1 if policy.name == "plain" else PILOT_VIEWS
    sizes = teacher.hierarchy.classes_per_hierarchy
    specs = {name: EncodingSpec.named(name, sizes) for name in encodings}
    half = pilot.limited(max(1, len(pilot) // 2))
    once = _ask(half, teacher, policy, 1, {}, batch_size, workers).seconds / len(half)
    asked = _ask(pilot, teacher, policy, pilot_views, specs, batch_size, workers)
    if asked.unreadable == len(pilot):
        raise DataError(
            f"{source.location}: none of {len(pilot)} pilot images can be read, expected images; "
            "run `distill precompute --limit 1` to see why"
        )
    # once = image + view, per_image = image + pilot_views · view; noise must not turn one negative.
    per_view = (asked.seconds / len(pilot) - once) / max(1, pilot_views - 1)
    per_view = min(max(per_view, 0.0), once) if pilot_views > 1 else once
    per_image = once - per_view
    options = PrecomputeOptions(policy=policy, block_rows=min(block_rows, rows))
    stores = []
    for name in encodings:
        sizes_of = _sizes(pilot, teacher, replace(options, encoding=name), asked, name)
        figures = fidelity_figures(asked.errors[name])
        for count in views:
            total = sizes_of.total(rows, count, options.block_rows)
            stores.append(
                PlannedStore(
                    encoding=name,
                    views=count,
                    hours=rows * (per_image + count * per_view) / 3600,
                    bytes_total=total,
                    bytes_per_view=total / (rows * count),
                    gradient_angle_deg=figures["gradient_angle_deg"],
                    near_teacher_angle_deg=figures["near_teacher"]["gradient_angle_deg"],
                )
            )
    return Plan(
        rows=rows,
        pilot_images=len(pilot),
        pilot_unreadable=asked.unreadable,
        seconds_per_image=per_image,
        seconds_per_view=per_view,
        stores=tuple(stores),
    )


def _ask(
    source: ImageSource,
    teacher: Teacher,
    policy: ViewPolicy,
    views: int,
    specs: dict[str, EncodingSpec],
    batch_size: int,
    workers: int,
) -> _Pilot:
    """The teacher's answers on all of `source`, in every encoding, and the time they took."""
    hierarchy, images = teacher.hierarchy, max(1, batch_size // views)
    drawn = tuple(range(views))
    requests = [
        [ViewRequest(r, drawn, prove=r < REPLAY_ROWS) for r in range(len(source))[i : i + images]]
        for i in range(0, len(source), images)
    ]
    answers = {
        name: [
            Answers.empty(len(source), sum(spec.entries), hierarchy.num_hierarchies) for _ in drawn
        ]
        for name, spec in specs.items()
    }
    errors: dict[str, list[FidelityErrors]] = {name: [] for name in specs}
    replay: dict[str, list[str]] = {}
    seconds, unreadable, started = 0.0, 0, time.monotonic()
    with progress("pilot", len(source), "images") as tick:
        for batch in load_views(source, policy, teacher.sizes, requests, workers=workers):
            unreadable += len(batch.bad)
            if not batch.rows:
                continue
            replay |= {str(row): proofs for row, proofs in batch.proofs.items()}
            for view in drawn:
                exact = teacher.targets([pixels[:, view] for pixels in batch.pixels])
                # Waits for a GPU, so that the clock is honest.
                if not bool(exact.confidence.isfinite().all()):
                    raise TeacherError(
                        f"teacher {teacher.identity.name}: NaN or Inf in the pilot, expected "
                        "finite logits; check the weights, or try --precision float32"
                    )
                seconds += time.monotonic() - started
                for name, spec in specs.items():
                    sparse = sparsify(exact, hierarchy, spec)
                    answers[name][view].put(np.array(batch.rows), sparse.to_answers())
                    errors[name] += _audited(batch.rows, exact, sparse, teacher)
                started = time.monotonic()
            tick(len(batch.rows))
    return _Pilot(answers, errors, replay, seconds, unreadable)


def _audited(
    rows: list[int], exact: DenseTargets, sparse: SparseTargets, teacher: Teacher
) -> list[FidelityErrors]:
    audited = torch.tensor([i for i, row in enumerate(rows) if row < FIDELITY_ROWS])
    if not len(audited):
        return []
    probs, confidence = exact.probs[audited].cpu(), exact.confidence[audited].cpu()
    kept = SparseTargets(
        index=sparse.index[audited].cpu(),
        prob=sparse.prob[audited].cpu(),
        confidence=sparse.confidence[audited].cpu(),
        sq_norm=sparse.sq_norm[audited].cpu(),
        slots=sparse.slots,
    )
    exact = DenseTargets(probs=probs, confidence=confidence)
    return [fidelity_errors(exact=exact, sparse=kept, hierarchy=teacher.hierarchy)]


@dataclass(frozen=True)
class _Sizes:
    """Bytes of real stores of the pilot's rows, taken apart."""

    chunks_a_row_and_view: float
    documents: tuple[int, int]  # with one view, and what a further one adds
    label: float

    def total(self, rows: int, views: int, block_rows: int) -> int:
        """Bytes of a store of that many rows and views."""
        blocks = -(-rows // block_rows)
        documents = self.documents[0] + (views - 1) * self.documents[1]
        commits = blocks * (COMMIT_BYTES + views * COMMIT_BYTES_A_VIEW)
        chunks = rows * views * self.chunks_a_row_and_view
        return round(chunks + documents + commits + rows * self.label + _id_bytes(rows))


def _sizes(
    pilot: ImageSource, teacher: Teacher, options: PrecomputeOptions, asked: _Pilot, name: str
) -> _Sizes:
    labels = label_indices(pilot, teacher.hierarchy)
    fidelity = fidelity_figures(asked.errors[name])
    documents, chunks = [], 0
    for views in range(1, len(asked.answers[name]) + 1):
        manifest = manifest_for(
            pilot, labels, teacher, replace(options, views=views, block_rows=len(pilot))
        )
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch, "store")
            store = LogitStore.create(
                place,
                manifest,
                ids=pilot.ids,
                labels=labels,
                hierarchy=teacher.hierarchy.to_json(),
            )
            replay = {row: proofs[:views] for row, proofs in asked.replay.items()}
            audit = {"fidelity": fidelity, "replay": replay}
            store.write_block(0, asked.answers[name][:views], {"bad": [], "audit": audit})
            store.finish(audit)
            chunks = sum(_chunk_bytes(place, array) for array in ANSWER_ARRAYS)
            label = _chunk_bytes(place, "label")
            samples = label + _chunk_bytes(place, "sample_id")
            documents.append(store.bytes_total() - chunks - samples)
    further = documents[1] - documents[0] if len(documents) > 1 else 0
    seen = len(pilot) * len(asked.answers[name])
    return _Sizes(chunks / seen, (documents[0], further), label / len(pilot))


def _id_bytes(rows: int) -> float:
    """What that many ids take: hashes are uniform, so any will do; whole chunks are alike."""
    chunk = min(rows, SAMPLE_CHUNK_ROWS)
    generator = np.random.default_rng(0)
    high = generator.integers(0, int(2**64 * (chunk / rows)), chunk, dtype=np.uint64)
    ids: SampleIds = np.stack([np.sort(high), generator.integers(0, 2**64, chunk, np.uint64)], 1)
    with tempfile.TemporaryDirectory() as scratch:
        objects = Objects(scratch)
        create_sample_arrays(objects, ids, np.zeros(chunk, np.int64))
        return _chunk_bytes(Path(scratch), "sample_id") * rows / chunk


def _chunk_bytes(place: Path, array: str) -> int:
    return Objects(str(place / array / "c")).bytes_total()
