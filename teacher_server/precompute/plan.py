"""Estimate what a precompute would take, from a pilot on some images.

The pilot's rows are the first block of the store to come, a fair sample of the data set. Its
answers are written into real stores in a scratch folder, one for each encoding, and what these
weigh is extrapolated; only the samples' ids, which compress better the more there are, are drawn
anew.
"""

import json
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.sample_ids import SampleIds
from distill.data.source import ImageSource, label_indices
from distill.data.view_policy import ViewPolicy
from distill.errors import ConfigError, DataError
from distill.events import Journal
from distill.store.format.audit import AuditedViews, audited_rows
from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.layout import SAMPLE_CHUNK_ROWS, create_sample_arrays
from distill.store.logit_store import LogitStore
from distill.store.places.objects import Objects
from distill.targets.agreement import TagAgreement, agreement_of
from distill.targets.encoding import EncodingSpec
from distill.teacher_server.precompute.options import PrecomputeOptions, block_rows_for
from distill.teacher_server.precompute.pilot import Pilot, PilotRuns
from distill.teacher_server.precompute.run import manifest_for
from distill.teacher_server.teacher.batch_size import choose_speed
from distill.teacher_server.teacher.teacher import Teacher

PILOT_VIEWS = 2  # tells what a further view of a decoded image costs
DECODED = 64  # images that tell what decoding costs
COMMIT_BYTES, COMMIT_BYTES_A_VIEW = 40, 64  # compacted: two copies of a digest, host and time


@dataclass(frozen=True, kw_only=True)
class Booking:
    """Devices that work side by side. views_per_s: of one; None is this machine's, as measured.

    price_per_hour: of one, in any currency.
    """

    devices: int = 1
    views_per_s: float | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedStore:
    """One encoding and number of views. bytes_per_view: of one image, everything included.

    hours: of all devices side by side. cost: of them all. cores: of the CPU that keep one device
    busy. angle_deg: median, p99 and maximum of each, as in a certificate.
    """

    encoding: str
    views: int
    hours: float
    cost: float | None
    cores: float
    bytes_total: int
    bytes_per_view: float
    angle_deg: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """seconds_per_image: reading and decoding; seconds_per_view: rendering and the teacher."""

    rows: int
    booking: Booking
    pilot_images: int
    pilot_unreadable: int
    seconds_per_image: float
    seconds_per_view: float
    stores: tuple[PlannedStore, ...]
    agreement: TagAgreement

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def make_plan(
    *,
    source: ImageSource,
    teacher: Teacher,
    policy: ViewPolicy,
    encodings: Sequence[str],
    views: Sequence[int],
    booking: Booking,
    rows: int | None = None,
    pilot_images: int | None = None,
    block_rows: int | None = None,
    batch_size: int | None = None,
    compiled: bool | None = None,
    workers: int = 2,
) -> Plan:
    """Run the pilot and extrapolate to `rows` images; None is as many as the source has.

    pilot_images: None is one block.

    Raises:
        DataError: no image of the pilot can be read.
        ConfigError: no rows or no views are asked for.
    """
    rows, policy = rows or len(source), replace(policy, frames=source.frames)
    of_block = block_rows_for(rows, block_rows)
    pilot = source.limited(min(pilot_images or of_block, of_block))
    if min(len(pilot), rows, *views) < 1:
        raise ConfigError(f"{rows} rows and views {list(views)} found, expected at least 1 of each")
    pilot_views = 1 if policy.name == "plain" else PILOT_VIEWS
    sizes = teacher.hierarchy.classes_per_hierarchy
    specs = {name: EncodingSpec.named(name, sizes) for name in encodings}
    spec = next(iter(specs.values()))
    speed = choose_speed(
        teacher,
        spec,
        views=rows * max(views),
        frames=source.frames,
        batch_size=batch_size,
        compiled=compiled,
        earlier=None,
        journal=Journal(),
    )
    runs = PilotRuns(teacher=teacher, policy=policy, speed=speed, workers=workers)
    half = pilot.limited(max(1, len(pilot) // 2))
    once, more = (runs.seconds(half, views=n, spec=spec) / len(half) for n in (1, pilot_views))
    pilot_run = runs.answers(pilot, views=pilot_views, specs=specs)
    if pilot_run.unreadable == len(pilot):
        raise DataError(
            f"{source.location}: none of {len(pilot)} pilot images can be read, expected images; "
            "run `distill precompute --limit 1` to see why"
        )
    # once = image + view, per_image = image + pilot_views · view; noise must not turn one negative.
    per_view = (more - once) / max(1, pilot_views - 1)
    per_view = min(max(per_view, 0.0), once) if pilot_views > 1 else once
    per_image = once - per_view
    few = pilot.limited(DECODED)
    core = [runs.decoding(few, views=n) / len(few) for n in (1, pilot_views)]
    core_view = max(0.0, core[1] - core[0]) / max(1, pilot_views - 1)
    options = PrecomputeOptions(policy=policy)
    stores = []
    for name in encodings:
        sizes_of = _sizes(pilot, teacher, replace(options, encoding=name), pilot_run, name)
        figures = AuditedViews.together(pilot_run.audit[name]).figures()
        assert figures
        for count in views:
            total = sizes_of.total(rows, count, of_block)
            measured = per_image + count * per_view
            seconds = count / booking.views_per_s if booking.views_per_s else measured
            hours = rows * seconds / booking.devices / 3600
            price = booking.price_per_hour
            stores.append(
                PlannedStore(
                    encoding=name,
                    views=count,
                    hours=hours,
                    cost=None if price is None else hours * booking.devices * price,
                    cores=(core[0] + (count - 1) * core_view) / seconds,
                    bytes_total=total,
                    bytes_per_view=total / (rows * count),
                    angle_deg=figures["angle_deg"],
                )
            )
    return Plan(
        rows=rows,
        booking=booking,
        pilot_images=len(pilot),
        pilot_unreadable=pilot_run.unreadable,
        seconds_per_image=per_image,
        seconds_per_view=per_view,
        stores=tuple(stores),
        agreement=agreement_of(
            pilot_run.answers[encodings[0]][0],
            label_indices(pilot, teacher.hierarchy),
            teacher.hierarchy,
            spec.entries,
        ),
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes of real stores of the pilot's rows, taken apart."""

    chunks_a_row_and_view: float
    documents: tuple[int, int]  # with one view, and what a further one adds
    label: float
    audited_view: float

    def total(self, rows: int, views: int, block_rows: int) -> int:
        """Bytes of a store of that many rows and views."""
        blocks = -(-rows // block_rows)
        documents = self.documents[0] + (views - 1) * self.documents[1]
        commits = blocks * (COMMIT_BYTES + views * COMMIT_BYTES_A_VIEW)
        chunks = rows * views * self.chunks_a_row_and_view
        audits = blocks * views * audited_rows(block_rows, blocks) * self.audited_view
        return round(chunks + documents + commits + audits + rows * self.label + _id_bytes(rows))


def _sizes(
    pilot: ImageSource, teacher: Teacher, options: PrecomputeOptions, pilot_run: Pilot, name: str
) -> _Sizes:
    labels = label_indices(pilot, teacher.hierarchy)
    measured = AuditedViews.together(pilot_run.audit[name])
    documents, chunks = [], 0
    for views in range(1, len(pilot_run.answers[name]) + 1):
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
            replay = {row: proofs[:views] for row, proofs in pilot_run.replay.items()}
            facts = {"bad": [], "replay": replay}
            store.write_block(0, pilot_run.answers[name][:views], facts)
            store.finish()
            chunks = sum(_chunk_bytes(place, array) for array in ANSWER_ARRAYS)
            label = _chunk_bytes(place, "label")
            samples = label + _chunk_bytes(place, "sample_id")
            documents.append(store.bytes_total() - chunks - samples)
    further = documents[1] - documents[0] if len(documents) > 1 else 0
    seen = len(pilot) * len(pilot_run.answers[name])
    audit = len(zlib.compress(json.dumps(measured.to_json()).encode())) / max(1, len(measured))
    return _Sizes(chunks / seen, (documents[0], further), label / len(pilot), audit)


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
    sizes = [path.stat().st_size for path in (place / array).glob("c*")]
    return sum(sizes)
