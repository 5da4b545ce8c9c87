"""How well are missing and wrong tags found, beside cleanlab and against the truth?

    python benchmarks/tags.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 3]

On tiny-imagenet-h: 20,000 training images, 30% of them tagged with an ancestor of their true class.
5% of the images get a wrong tag: one of another image, neither above nor below the true class.
The ResNet-18-D teacher (which was trained on right tags) answers two views. `distill inspect` then
looks for missing tags, at several thresholds, and for suspect ones; cleanlab ranks the same images
by the same probabilities, in its ways for one label (the tag, in its own hierarchy) and for many
(the tag with its ancestors). Then the same with teachers that had nothing but the wrong tags to
learn from: one a fold, each asked about the images it never saw. Last, what cleaning is worth:
students that train on the tags as they are, on the list that `--cleaned` wrote, and on that list
with suspect images only taken out, or missing tags only filled in.

About half an hour on three cores. With --out, what is there already is used again. --quick takes
2,500 images, two folds and one epoch. Prints a log in Markdown, and as its last line one JSON
object.
"""

import argparse
import csv
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from cleanlab.multilabel_classification import get_label_quality_scores as quality_of_many
from cleanlab.rank import get_label_quality_scores as quality_of_one
from commands import RECIPE, answer_of, benchmark
from numpy.typing import NDArray
from torch import from_numpy
from torchmetrics.functional.classification import binary_average_precision

from distill.data.sample_ids import find_rows
from distill.data.source import open_source
from distill.store.logit_store import LogitStore
from distill.targets.tensors import SparseTargets, densify
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import Inspection, open_inspection
from distill.teacher_server.inspect.statistics import UNITS

WRONG_SHARE = 0.05
THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
SUSPECT = (1.5, 2.0, 2.5, 3.0, 4.0)
WAYS = {
    "as they are": (),
    "suspect out": ("--suspect",),
    "missing in": ("--missing",),
    "both": ("--suspect", "--missing"),
}


class Bench:
    """Makes data, stores, teachers and students by the commands a user types."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        shared = options.shared.resolve() / "data"
        self.shared, self.out, self.jobs = shared, out, options.jobs
        self.data, self.truth = out / "planted", shared / "tiny-imagenet-h/labels.csv"
        self.tars = "train-000000.tar" if options.quick else "train-*.tar"
        self.epochs = ("--epochs", 1) if options.quick else ()
        self.folds = 2 if options.quick else 3
        self.labels = ("--label-set", shared / "tiny-imagenet-h/label_set.json")
        self.teacher = shared / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"

    def precompute(self, store: Path, name: str, weights: Path, *more: object) -> Path:
        """Two views."""
        if not (store / "zarr.json").exists():
            answer_of(
                *("precompute", "--teacher", name, "--weights", weights, *self.labels),
                *("--data", self.data, "--store", store, "--views", 2, *more),
                *("--randaugment-ops", 0, "--cutout", 0, "--device", "cpu", "--workers", 1),
            )
        return store

    def inspect(self, store: Path, *more: object) -> dict[str, Any]:
        """With the truth."""
        return answer_of("inspect", store, "--data", self.data, "--truth", self.truth, *more)

    def fold(self, number: int) -> Path:
        """A store of the images of a fold, by a teacher that was not trained on them."""
        run = self.out / f"fold{number}-teacher"
        lists = self.out / "folds"
        self.train(run, 6, "--samples", lists / f"train-{number}.csv")
        held_out = ("--samples", lists / f"held-out-{number}.csv")
        return self.precompute(
            self.out / f"fold{number}", "resnet10t", run / "student.safetensors", *held_out
        )

    def train(self, run: Path, epochs: int, *more: object) -> Path:
        """By the recipe of the small benchmark, on one core."""
        if not (run / "student.safetensors").exists():
            answer_of(
                *("pretrain", "--config", RECIPE, "-o", "hierarchy_weights=even"),
                *("--epochs", epochs, *self.epochs, "--data", self.data, *self.labels, *more),
                *("--out", run, "--device", "cpu", "--workers", 1),
            )
        return run

    def student(self, way: str) -> float:
        """Semantic accuracy on the validation images, which are tagged right."""
        folder = self.out / f"cleaned-{way.replace(' ', '-')}"
        samples: tuple[object, ...] = ()
        if WAYS[way]:
            words = [word for kind in WAYS[way] for word in (kind, folder / f"{kind[2:]}.csv")]
            cleaned = folder / "cleaned.csv"
            self.inspect(self.out / "store", *words, "--cleaned", cleaned)
            samples = ("--samples", cleaned)
        run = self.train(folder / "run", 3, *samples)
        judged = answer_of(
            *("evaluate", run, "--data", self.shared / "tiny-imagenet-h", *self.labels),
            *("--device", "cpu", "--workers", 1),
        )
        return float(next(iter(judged.values()))["semantic_top1"])


def plant(source: Path, tars: str, out: Path) -> None:
    """The training tars again, with wrong tags for some images, which `wrong.json` names."""
    document = json.loads((source / "label_set.json").read_text())
    ancestors = document["ancestors_nearest_first"]
    with (source / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    random = np.random.default_rng(0)
    wrong: dict[str, str] = {}
    for i in sorted(random.choice(len(rows), round(WRONG_SHARE * len(rows)), replace=False)):
        true = rows[i]["true_wnid"]
        path = {true, *ancestors.get(true, [])}
        while rows[i]["key"] not in wrong:
            tag = rows[int(random.integers(len(rows)))]["tagged_wnid"]
            if tag not in path and true not in ancestors.get(tag, []):
                wrong[rows[i]["key"]] = tag
    out.mkdir(parents=True, exist_ok=True)
    for path_of_tar in sorted(source.glob(tars)):
        with tarfile.open(path_of_tar) as old, tarfile.open(out / path_of_tar.name, "w") as new:
            for member in old:
                file_of = old.extractfile(member)
                assert file_of
                content = file_of.read()
                key, _, suffix = member.name.partition(".")
                if suffix == "wnid" and key in wrong:
                    content = wrong[key].encode()
                info = tarfile.TarInfo(member.name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    (out / "wrong.json").write_text(json.dumps(wrong))


def tried_scores(bench: Bench, inspection: Inspection) -> dict[str, float]:
    """Average precision of other ways to rank by the probabilities along a tag's path."""
    planted = planted_rows(bench)
    images = inspection.judged.images(np.arange(len(planted)))
    tagged = inspection.hierarchy.label_table[inspection.labels] >= 0
    top, tag = (np.maximum(images[n], 1) / UNITS for n in ("top_prob", "tag_prob"))
    log_odds = np.where(tagged, np.log(top / tag), 0)
    log_prob = np.where(tagged, -np.log(tag), 0)
    margin, levels = np.where(tagged, top - tag, 0), tagged.sum(1)
    scores = {
        "largest margin": margin.max(1),
        "mean margin": margin.sum(1) / levels,
        "smallest probability": log_prob.max(1),
        "sum of -ln p": log_prob.sum(1),
        "mean of -ln p": log_prob.sum(1) / levels,
        "largest log-odds": log_odds.max(1),
        "sum of log-odds": log_odds.sum(1),
        "mean of log-odds": log_odds.sum(1) / levels,
    }
    return {name: average_precision(score, planted) for name, score in scores.items()}


def planted_rows(bench: Bench) -> NDArray[np.bool_]:
    """[rows]: which images have a wrong tag."""
    wrong = json.loads((bench.data / "wrong.json").read_text())
    return np.array([sample.key in wrong for sample in open_source(bench.data).samples])


def cleanlab_average_precision(bench: Bench, inspection: Inspection) -> dict[str, float]:
    """Of its rankings of the same images by the same probabilities."""
    hierarchy = inspection.hierarchy
    judged = np.flatnonzero(inspection.judged_rows)
    planted = planted_rows(bench)[judged]
    probs = dense_answers(bench, inspection)[judged]
    tags = inspection.labels[judged]
    levels = np.minimum(hierarchy.levels[tags], hierarchy.num_hierarchies - 1)
    found = {}
    for method in ("self_confidence", "normalized_margin"):
        quality = np.ones(len(tags))
        for k, part in enumerate(hierarchy.slices):
            mine = np.flatnonzero(levels == k)
            if len(mine):
                own = probs[mine, part] / probs[mine, part].sum(1, keepdims=True)
                given = hierarchy.label_table[tags[mine], k]
                quality[mine] = quality_of_one(given, own, method=method)
        found[f"one label, {method}"] = average_precision(-quality, planted)
        positions, starts = hierarchy.label_table[tags], [part.start for part in hierarchy.slices]
        many = [
            [s + int(p) for s, p in zip(starts, row, strict=True) if p >= 0] for row in positions
        ]
        quality = quality_of_many(many, probs, method=method)
        found[f"many labels, {method}"] = average_precision(-quality, planted)
    return found


def dense_answers(bench: Bench, inspection: Inspection) -> NDArray[np.float32]:
    """[rows, ΣN_k]: means over views, of the store, or of the fold that has the image."""
    stores = [inspection.store]
    if inspection.judged is not inspection.beliefs:
        stores = [LogitStore.open(bench.out / f"fold{n}") for n in range(bench.folds)]
    hierarchy = inspection.hierarchy
    probs = np.zeros((len(inspection.labels), sum(hierarchy.classes_per_hierarchy)), np.float32)
    for store in stores:
        places = find_rows(inspection.store.sample_ids, store.sample_ids)
        manifest = store.manifest
        for block, commit in store.block_commits().items():
            rows = manifest.rows_of_block(block)
            codes = store.read_block(block, commit)
            views = [
                SparseTargets.from_rows(manifest.coding.dequantise(each), manifest.slots)
                for each in codes
            ]
            means = np.mean([densify(view, hierarchy).numpy() for view in views], 0)
            probs[places[rows.start : rows.stop]] = means
    return probs


def average_precision(scores: NDArray[np.float64], planted: NDArray[np.bool_]) -> float:
    return float(binary_average_precision(from_numpy(scores), from_numpy(planted).int()))


def _opened(store: Path, folds: tuple[str, ...] = ()) -> Inspection:
    return open_inspection(str(store), rules=Rules(), folds=folds)


def main() -> None:
    with benchmark(
        "Missing and wrong tags on tiny-imagenet-h",
        __doc__,
        jobs=3,
        libraries=("torch", "timm", "cleanlab"),
    ) as (options, out):
        bench = Bench(options, out)
        if not (bench.data / "wrong.json").exists():
            plant(bench.shared / "tiny-imagenet-h", bench.tars, bench.data)
        figures = {
            **_with_teacher(bench),
            **_with_folds(bench),
            "cleaned": _cleaned(bench),
        }
    print(json.dumps(figures))


def _with_teacher(bench: Bench) -> dict[str, Any]:
    store = bench.precompute(bench.out / "store", "resnet18d", bench.teacher)
    missing = {t: bench.inspect(store, "--missing-above", t) for t in THRESHOLDS}
    missing_rows = {t: each["against_truth"]["missing"] for t, each in missing.items()}
    print("## Missing tags, by `--missing-above`\n")
    print("| threshold | images | tags added | precision % | recall % |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for threshold, row in missing_rows.items():
        shares = f"{100 * row['precision']:.1f} | {100 * row['recall']:.1f}"
        print(f"| {threshold} | {row['images']} | {row['added']} | {shares} |")
    suspect = {s: bench.inspect(store, "--suspect-above", s) for s in SUSPECT}
    suspect_rows = {s: each["against_truth"]["suspect"] for s, each in suspect.items()}
    print("\n## Suspect tags, by `--suspect-above`\n")
    print("| nats | images | precision % | recall % |\n| ---: | ---: | ---: | ---: |")
    for nats, row in suspect_rows.items():
        shares = f"{100 * row['precision']:.1f} | {100 * row['recall']:.1f}"
        print(f"| {nats} | {row['images']} | {shares} |")
    tried = tried_scores(bench, _opened(store))
    print("\n## Scores that were tried for suspect tags\n")
    print("| score along the tag's path | average precision |\n| --- | ---: |")
    for name, value in tried.items():
        print(f"| {name} | {value:.3f} |")
    confident = bench.inspect(store, "--suspect-above", 0.001, "--sure-above", 0.7)
    row = confident["against_truth"]["suspect"]
    print(
        f"\nBy confidence alone (`--suspect-above 0.001 --sure-above 0.7`): {row['images']} "
        f"images, precision {100 * row['precision']:.1f}%, recall {100 * row['recall']:.1f}%"
    )
    ranked = _ranked(bench, store, (), suspect_rows[2.5])
    found = {"missing": missing_rows, "suspect": suspect_rows, "teacher": ranked}
    return {**found, "tried": tried, "confident": row}


def _with_folds(bench: Bench) -> dict[str, Any]:
    lists = ("--data", bench.data, "--folds", bench.folds, "--out", bench.out / "folds")
    answer_of("data", "folds", *lists)
    with ThreadPoolExecutor(bench.jobs) as pool:
        folds = tuple(map(str, pool.map(bench.fold, range(bench.folds))))
    words = [word for fold in folds for word in ("--folds", fold)]
    store = bench.out / "store"
    found = bench.inspect(store, *words)["against_truth"]
    return {"folds": {**_ranked(bench, store, folds, found["suspect"]), **found}}


def _ranked(
    bench: Bench, store: Path, folds: tuple[str, ...], suspect: dict[str, Any]
) -> dict[str, float]:
    ranked = {"distill": suspect["average_precision"]}
    ranked |= cleanlab_average_precision(bench, _opened(store, folds))
    print(f"\n## Average precision, {'teachers of folds' if folds else 'the teacher'}\n")
    print("| ranking | average precision |\n| --- | ---: |")
    for name, value in ranked.items():
        print(f"| {name if name == 'distill' else f'cleanlab, {name}'} | {value:.3f} |", flush=True)
    return ranked


def _cleaned(bench: Bench) -> dict[str, float]:
    with ThreadPoolExecutor(bench.jobs) as pool:
        found = dict(zip(WAYS, pool.map(bench.student, WAYS), strict=True))
    print("\n## Students on cleaned tags, no KD, seed 0\n")
    print("| tags | semantic accuracy % |\n| --- | ---: |")
    for way, accuracy in found.items():
        print(f"| {way} | {100 * accuracy:.1f} |", flush=True)
    return found


if __name__ == "__main__":
    main()
