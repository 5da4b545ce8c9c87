"""The raw release → ImageNet-21K-P: list, choose, shrink in parallel, report.

Nothing of the release is unpacked, and each image is read once. Killed at any moment, the same
command goes on; the finished folder is the same bytes.
"""

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.curate.prepare.ledger import Ledger, finished
from distill.curate.prepare.raw import RawImages, list_raw
from distill.curate.prepare.report import PrepareReport, compare
from distill.curate.prepare.selection import Selection, SelectionRules, select
from distill.curate.prepare.shrink import ShrinkRules
from distill.curate.prepare.unit import Form, Unit, UnitDone, do_unit
from distill.data.sample_ids import sample_ids, samples_digest
from distill.errors import ConfigError
from distill.files import write_atomically, write_csv
from distill.hierarchy.semantic import resolve
from distill.process_pool import map_in_processes, warm_up
from distill.progress import progress

SPLITS = ("train", "val")
REPORT = "report.json"
PARTS = "parts"  # folder of shards that are being written
RECORD_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """unit_images: of a shard; of class folders, how many count as done together."""

    selection: SelectionRules = field(default_factory=SelectionRules)
    shrink: ShrinkRules = field(default_factory=ShrinkRules)
    form: Form = "folder"
    unit_images: int = 1000
    workers: int = 1


def prepare(
    raw: str,
    out: Path,
    options: PrepareOptions,
    *,
    stopping: Callable[[], bool] = lambda: False,
    dry_run: bool = False,
    shown: bool = True,
) -> PrepareReport:
    """Fill `out`, or go on filling it; with `dry_run` say what would be written.

    Beside the images it leaves report.json, classes.csv, bad_images.csv and classes.txt, the wnids
    that were kept.

    Raises:
        DataError: the release is of no known form, or not whole.
        ConfigError: `out` holds something else.
    """
    started = time.monotonic()
    recipe = _recipe(options)
    if out.resolve().is_relative_to(Path(raw).resolve()):
        raise ConfigError(
            f"{out}: inside the release {raw}, expected a folder apart from it; give another --out"
        )
    where = {"raw": _whereabouts(raw)}
    if not dry_run and finished(out, {**recipe, **where}):
        return _report_of(out)
    if options.workers and not dry_run:
        warm_up(do_unit)
    images, chosen = _chosen(raw, options, stopping, shown)
    if dry_run:
        return _report(out, images, chosen, {}, options, started)
    ledger = Ledger(out, {**recipe, **_identity(images, chosen)}, where)
    try:
        complete = _fill(ledger, images, chosen, options, stopping, shown)
        report = replace(
            _report(out, images, chosen, ledger.done, options, started), complete=complete
        )
        if complete:
            _write_lists(out, images, chosen, _bad(ledger.done), report)
            ledger.finish()
        return report
    finally:
        ledger.close()


def _chosen(
    raw: str, options: PrepareOptions, stopping: Callable[[], bool], shown: bool
) -> tuple[RawImages, Selection]:
    with progress("listing", 0, "images", shown=shown) as tick:

        def tick_listed(units: int, note: str = "") -> None:
            if stopping():  # nothing is in hand yet
                raise KeyboardInterrupt
            tick(units, note)

        images = list_raw(raw, tick_listed, options.workers)
    rules = options.selection
    return images, select(images.samples, rules)


def _recipe(options: PrepareOptions) -> dict[str, Any]:
    """What is done to any release."""
    rules = asdict(options.selection)
    kept = rules.pop("label_set")
    return {
        "form": options.form,
        "images_per_shard": options.unit_images,
        **asdict(options.shrink),
        **rules,
        "label_set": kept and hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest(),
    }


def _identity(images: RawImages, chosen: Selection) -> dict[str, Any]:
    """Which images were chosen, by names, and by sizes where a tar tells them."""
    table = images.samples.select(np.concatenate([chosen.train, chosen.val]))
    ids = sample_ids(sample.key for sample in table)
    return {
        "images": {split: len(chosen.rows(split)) for split in SPLITS},
        "digest": samples_digest(ids, table.rows["size"].astype(np.int64)),
    }


def _whereabouts(raw: str) -> list[Any]:
    """Where a release is and what tells that it has changed: its size and time, as a file."""
    path = Path(raw).resolve()
    status = path.stat() if path.is_file() else None
    return [str(path), *((status.st_size, status.st_mtime_ns) if status else ())]


def _report_of(out: Path) -> PrepareReport:
    """What was reported when the last unit was done."""
    try:
        report = PrepareReport(**json.loads((out / REPORT).read_text()))
        if not {*SPLITS} <= {*report.images}:
            raise ValueError("no number of images")
        return report
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{out}: all is done, but {REPORT} cannot be read ({error}); expected it there: "
            "restore it, or give another --out"
        ) from error


def _fill(
    ledger: Ledger,
    images: RawImages,
    chosen: Selection,
    options: PrepareOptions,
    stopping: Callable[[], bool],
    shown: bool,
) -> bool:
    """Do the units that are not done; whether all are."""
    out = ledger.out
    total = sum(len(chosen.rows(split)) for split in SPLITS)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    parts = out / PARTS / uuid.uuid4().hex  # processes of a run that was killed may still write
    parts.mkdir(parents=True)
    todo = _units(out, parts, images, chosen, options, ledger.done)
    waiting: list[UnitDone] = []
    recorded = 0.0
    with progress("prepare", total, "images", done=_count(ledger), shown=shown) as tick:
        try:
            for done in map_in_processes(do_unit, todo, options.workers, stopping=stopping):
                waiting.append(done)
                tick(done.images + len(done.bad))
                if time.monotonic() - recorded > RECORD_EVERY_S:
                    ledger.record(waiting, parts)
                    waiting, recorded = [], time.monotonic()
        finally:
            ledger.record(waiting, parts)
            shutil.rmtree(out / PARTS, ignore_errors=True)
    return _count(ledger) == total


def _count(ledger: Ledger) -> int:
    """Images that are done, bad ones included."""
    return sum(unit.images + len(unit.bad) for unit in ledger.done.values())


def _units(
    out: Path,
    parts: Path,
    images: RawImages,
    chosen: Selection,
    options: PrepareOptions,
    done: Mapping[str, UnitDone],
) -> Iterator[Unit]:
    for split in SPLITS:
        rows = chosen.rows(split)
        for number, start in enumerate(range(0, len(rows), options.unit_images)):
            name = f"{split}-{number:06d}"
            if name not in done:
                some = rows[start : start + options.unit_images]
                yield Unit(
                    out=str(out),
                    parts=str(parts),
                    split=split,
                    name=name,
                    form=options.form,
                    samples=[images.samples[int(row)] for row in some],
                    rules=options.shrink,
                )


def _bad(done: Mapping[str, UnitDone]) -> dict[str, str]:
    """The reason for each image that was left out, by key."""
    return {key: reason for unit in done.values() for key, reason in unit.bad.items()}


def _report(
    out: Path,
    images: RawImages,
    chosen: Selection,
    done: Mapping[str, UnitDone],
    options: PrepareOptions,
    started: float,
) -> PrepareReport:
    units = done.values()
    planned = {split: len(chosen.rows(split)) for split in SPLITS}
    written = {split: sum(unit.images for unit in units if unit.split == split) for split in SPLITS}
    counts = written if done else planned
    bad = _bad(done)
    return PrepareReport(
        out=str(out),
        classes_found=len(chosen.images),
        classes_kept=len(chosen.kept),
        images_found=len(images.samples),
        images=counts,
        bytes_in=sum(unit.bytes_in for unit in units),
        bytes_out=sum(unit.bytes_out for unit in units),
        bad=len(bad) + len(chosen.twice),
        skipped=len(images.skipped),
        complete=False,
        seconds=time.monotonic() - started,
        against=compare(
            images_by_class=chosen.images,
            kept=chosen.kept,
            images=counts,
            bad=bad,
            min_images=options.selection.min_images,
            val_images=options.selection.val_images,
        ),
    )


def _write_lists(
    out: Path,
    images: RawImages,
    chosen: Selection,
    bad: Mapping[str, str],
    report: PrepareReport,
) -> None:
    twice = {images.samples[int(row)].key: "its name appears twice" for row in chosen.twice}
    rows = [*images.skipped.items(), *twice.items(), *sorted(bad.items())]
    write_csv(out / "bad_images.csv", ["name", "reason"], rows)
    kept = frozenset(chosen.kept)
    write_csv(
        out / "classes.csv",
        ["wnid", "images", "kept"],
        [[name, count, int(name in kept)] for name, count in chosen.images.items()],
    )
    write_atomically(out / "classes.txt", "".join(f"{c}\n" for c in chosen.kept).encode())
    write_atomically(out / REPORT, json.dumps(report.to_json(), indent=1).encode() + b"\n")


def rules_for(label_set: str | None, **rules: Any) -> SelectionRules:
    """With the synsets of a label set, by name or path."""
    kept = frozenset(resolve(label_set).synsets) if label_set else None
    return SelectionRules(label_set=kept, **rules)
