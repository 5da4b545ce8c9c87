"""What a student gains from a teacher: by the bytes of an answer, the teacher, and the distance.

    python benchmarks/kd_gain.py [--quick] [--shared ../shared] [--out FOLDER] [--jobs 2]

Semantic students of tiny-imagenet-h (10,000 images, six epochs of a test_resnet, three seeds) learn

- from one teacher's answers in each encoding, and almost as they are (64 entries, 4,095 steps);
- from three teachers: a ResNet-18-D, a student of their own kind, and a ResNet-10-T of few epochs;
- by other distances than KL: the squared error; KL at temperatures 2 and 4 (Hinton et al. 2015,
  arXiv 1503.02531); KL of standardised logits (Sun et al. 2024, arXiv 2403.01427, temperature 2);
  DKD (Zhao et al. 2022, arXiv 2203.08679, beta 8); DIST (Huang et al. 2022, arXiv 2205.10536).

Each distance is weighted so that it pulls three times as hard as the labels at random logits: a
number that was found for KL, on these images (benchmarks/kd_weight.py), and suits the others by
chance. The ResNet-18-D has seen the 100,000 images of Tiny-ImageNet, the other teachers 20,000.
Hierarchies are weighted as in the paper. Judged by semantic accuracy on validation images. The loop
is one of its own, of the parts that `distill` gives such loops. Each student trains on one core,
--jobs at a time: an hour and a quarter on two. With --out a benchmark that was stopped goes on.
--quick takes 1,280 images, two epochs and few students. Prints a log in Markdown, and as its last
line one JSON object.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from commands import RECIPE, answer_of, benchmark, spread
from torch import Tensor
from torch.utils.data import DataLoader

import distill
from distill.data.source import open_source
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import hierarchy_logits
from distill.losses.distances import relation
from distill.losses.semantic import confidence_of
from distill.targets.tensors import SparseTargets, densify

PULL, BATCH, LR = 3.0, 128, 3e-3
PULLS = (1.0, 10.0)  # of DIST beside
EXACT = "entries=64,steps=4095"
ENCODINGS = ("small", "standard", "fine", "dense", EXACT)
# Distance of one hierarchy's logits [B, n] from probabilities [B, n], by row. labels: [B], or -1.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def mse(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Σ(S − T)²."""
    return (logits.softmax(1) - teacher).square().sum(1)


def kl(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL(T‖S)."""
    return F.kl_div(logits.log_softmax(1), teacher, reduction="none").sum(1)


def tempered(temperature: float) -> Distance:
    """KL of both softened, times the square of the temperature."""

    def distance(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        soft = (_log(teacher) / temperature).softmax(1)
        return temperature**2 * kl(logits / temperature, soft, labels)

    return distance


def standardised(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL of logits with mean 0 and deviation 1, at temperature 2."""
    if logits.shape[1] < 3:  # two standardised logits are always the same two
        return kl(logits, teacher, labels)
    return tempered(2.0)(_standard(logits), _standard(_log(teacher)).softmax(1), labels)


def dkd(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """KL of the target against the rest, and eight times that among the rest.

    The target is the label, where there is none the teacher's first choice.
    """
    target = torch.where(labels >= 0, labels, teacher.argmax(1))[:, None]
    own = logits.log_softmax(1)
    parts = []
    for log_probs in (own, _log(teacher)):
        hit = log_probs.gather(1, target)
        rest = torch.log1p(-hit.exp().clamp(max=1 - 1e-6))
        others = log_probs.scatter(1, target, -1e4).log_softmax(1)
        parts.append((torch.cat([hit, rest], 1), others))
    (own_pair, own_rest), (pair, rest) = parts
    between = F.kl_div(own_pair, pair, reduction="none", log_target=True).sum(1)
    within = (rest.exp() * (rest - own_rest)).sum(1)
    return between + 8 * within if logits.shape[1] > 2 else between


def published_dist(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """1 − correlation, between classes of an image and between images of a class."""
    own = logits.softmax(1)
    return (1 - _correlation(own, teacher)) + (1 - _correlation(own.T, teacher.T)).mean()


def dist(logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """As `distill` has it, bounded for answers that hardly deviate from equal ones."""
    return relation(logits.softmax(1), teacher)


DISTANCES: dict[str, Distance] = {
    "mse": mse,
    "kl": kl,
    "kl, temperature 2": tempered(2.0),
    "kl, temperature 4": tempered(4.0),
    "kl, standardised": standardised,
    "dkd": dkd,
    "dist": dist,
    "dist, as published": published_dist,
}
COLUMNS = {"KL": "kl", "squared error": "mse", "DIST": "dist"}


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(1e-8).log()


def _standard(logits: Tensor) -> Tensor:
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-6)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    a, b = (each - each.mean(1, keepdim=True) for each in (first, second))
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)


@dataclass(frozen=True)
class Run:
    """A student. store: None has no teacher."""

    store: str | None
    distance: str = "kl"
    seed: int = 0
    pull: float = PULL


@dataclass(frozen=True)
class Work:
    """A run in a process of its own."""

    run: Run
    store: str  # also of a run without a teacher: images and labels
    data: str
    out: str
    images: int
    epochs: int


def trained(work: Work) -> float:
    """Semantic accuracy."""
    result = Path(work.out) / "figures.json"
    if result.exists():
        return float(json.loads(result.read_text()))
    torch.set_num_threads(1)
    torch.manual_seed(work.run.seed)
    images = open_source(work.data).limited(work.images)
    targets = distill.open(work.store, data=images, say=lambda line: None)
    hierarchy, distance = targets.hierarchy, DISTANCES[work.run.distance]
    loader: Any = DataLoader(
        targets.dataset(),
        batch_size=BATCH,
        sampler=targets.sampler(seed=work.run.seed),
        collate_fn=targets.collate,
        num_workers=1,
        persistent_workers=True,
        drop_last=True,
    )
    student = timm.create_model("test_resnet", num_classes=hierarchy.num_classes)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=work.epochs * len(loader), pct_start=0.1, cycle_momentum=False
    )
    weight = None if work.run.store else 0.0
    student.train()
    for epoch in range(work.epochs):
        targets.set_epoch(epoch)
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if weight is None:
                weight = work.run.pull * _balance(distance, batch, hierarchy)
            pixels = (batch["pixels"].float() / 255).contiguous(memory_format=torch.channels_last)
            logits = student(pixels)
            loss = _labels_loss(logits, batch, hierarchy)
            if weight:
                loss = loss + weight * _kd(distance, logits, batch, hierarchy)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    weights = Path(work.out) / "student.safetensors"
    criterion = targets.criterion(kd_weight=0)
    criterion.save(student.state_dict(), weights, student="test_resnet", size=targets.input_size)
    machine = ("--device", "cpu", "--workers", 0)
    (judged,) = answer_of("evaluate", work.out, "--data", work.data, *machine).values()
    result.write_text(json.dumps(judged["semantic_top1"]))
    return float(judged["semantic_top1"])


def _labels_loss(logits: Tensor, batch: dict[str, Any], hierarchy: SemanticHierarchy) -> Tensor:
    return distill.semantic_softmax_loss(
        logits=logits,
        labels=batch["label"],
        hierarchy=hierarchy,
        label_smoothing=0.2,
        weights="paper",
    )


def _kd(
    distance: Distance, logits: Tensor, batch: dict[str, Any], hierarchy: SemanticHierarchy
) -> Tensor:
    targets: SparseTargets = batch["targets"]
    confidence = confidence_of(targets, batch["label"], hierarchy, logits)
    labels = hierarchy.semantic_labels(batch["label"])
    parts = densify(targets, hierarchy).split(hierarchy.classes_per_hierarchy, 1)
    each = [
        confidence[:, k] * distance(own, parts[k], labels[:, k])
        for k, own in enumerate(hierarchy_logits(logits, hierarchy))
    ]
    return torch.stack(each).sum(0).mean()


def _balance(distance: Distance, batch: dict[str, Any], hierarchy: SemanticHierarchy) -> float:
    shape = len(batch["label"]), hierarchy.num_classes
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = (
        _labels_loss(logits, batch, hierarchy),
        _kd(distance, logits, batch, hierarchy),
    )
    by_labels, by_teacher = (torch.autograd.grad(loss, logits)[0].norm() for loss in losses)
    return float(by_labels / by_teacher)


class Bench:
    """Teachers, stores and students."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.shared, self.out, self.jobs = options.shared.resolve() / "data", out, options.jobs
        self.data, self.quick = self.shared / "tiny-imagenet-h", options.quick
        self.label_set = ("--label-set", self.data / "label_set.json")
        self.images = 1280 if self.quick else 10_000
        self.epochs, self.seeds = (2, 1) if self.quick else (6, 3)
        self.bytes: dict[str, float] = {}
        self.angles: dict[str, float] = {}

    def teachers(self) -> dict[str, tuple[str, Path]]:
        """Architecture and weights, by name."""
        given = self.shared / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
        found = {"ResNet-18-D": ("resnet18d", given)}
        if self.quick:
            return found
        for name, student, epochs in (
            ("test_resnet", "test_resnet", 12),
            ("ResNet-10-T", "resnet10t", 2),
        ):
            folder = self.out / f"teacher-{student}"
            answer_of(
                *("pretrain", "--config", RECIPE, "--student", student, "--epochs", epochs),
                *(
                    "-o",
                    "hierarchy_weights=paper",
                    "--data",
                    self.data,
                    *self.label_set,
                    "--out",
                    folder,
                ),
                *("--device", "cpu", "--workers", 1),
            )
            found[name] = (student, folder / "student.safetensors")
        return found

    def exact(self, student: str, weights: Path) -> Path:
        """A store of a teacher's answers almost as they are."""
        store = self.out / f"store-{student}"
        answer_of(
            *("precompute", "--teacher", student, "--weights", weights, *self.label_set),
            *("--data", self.data, "--store", store, "--views", 3, "--limit", self.images),
            *("--randaugment-ops", 0, "--cutout", 0, "--encoding", EXACT),
            *("--device", "cpu", "--workers", 2),
        )
        return store

    def encoded(self, exact: Path, encoding: str) -> Path:
        """The same answers in fewer bytes."""
        if encoding == EXACT:
            store = exact
        else:
            store = self.out / f"store-{encoding}"
            if not store.exists():
                answer_of("store", "transcode", exact, "--out", store, "--encoding", encoding)
        info = answer_of("store", "info", store)
        self.bytes[encoding] = info["bytes_per_view"]
        worst = (a["p99"] for n, a in info["fidelity"]["angle_deg"].items() if n.startswith("kl"))
        self.angles[encoding] = max(worst)
        return store

    def accuracy_of_teacher(self, student: str, weights: Path) -> float:
        """On validation images."""
        machine = ("--device", "cpu", "--workers", 1)
        (judged,) = answer_of(
            "evaluate", weights, "--data", self.data, *self.label_set, *machine
        ).values()
        return float(judged["semantic_top1"])

    def accuracies(self, runs: dict[str, Run]) -> dict[str, list[float]]:
        """By seed."""
        some_store = self.out / "store-resnet18d"
        works = {
            (name, seed): Work(
                run=replace(run, seed=seed),
                store=run.store or str(some_store),
                data=str(self.data),
                out=str(self.out / "runs" / f"{name}-{seed}".replace(" ", "")),
                images=self.images,
                epochs=self.epochs,
            )
            for seed in range(self.seeds)
            for name, run in runs.items()
        }
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            found = dict(zip(works, pool.map(trained, works.values()), strict=True))
        return {name: [found[name, seed] for seed in range(self.seeds)] for name in runs}


def main() -> None:
    with benchmark("What a student gains from a teacher", __doc__) as (options, out):
        print(json.dumps(_measured(Bench(options, out))))


def _measured(bench: Bench) -> dict[str, Any]:
    teachers = bench.teachers()
    stores = {name: bench.exact(*teacher) for name, teacher in teachers.items()}
    best = stores["ResNet-18-D"]
    encodings = ("small", "dense") if bench.quick else ENCODINGS
    distances = ("kl", "dist") if bench.quick else tuple(DISTANCES)
    runs = {"no teacher": Run(None)}
    for encoding in encodings:
        store = str(bench.encoded(best, encoding))
        runs |= {f"{encoding}, {loss}": Run(store, loss) for loss in COLUMNS.values()}
    runs |= {f"{EXACT}, {loss}": Run(str(best), loss) for loss in distances}
    if not bench.quick:
        dense = str(bench.encoded(best, "dense"))
        runs["dense, kl, temperature 2"] = Run(dense, "kl, temperature 2")
        for pull in PULLS:
            runs[f"{EXACT}, dist, pull {pull:g}"] = Run(str(best), "dist", pull=pull)
    runs |= {f"teacher {name}": Run(str(store)) for name, store in stores.items() if store != best}
    found = bench.accuracies(runs)
    alone = statistics.mean(found["no teacher"])
    print(f"Without a teacher {spread(found['no teacher'])}.\n")
    print("## By encoding: semantic accuracy, %\n")
    print("Angle: of the gradient of KL; 99% of the views are below it, for the worst student.\n")
    print(f"| encoding | bytes a view | angle | {' | '.join(COLUMNS)} |\n| --- |" + " ---: |" * 5)
    for encoding in encodings:
        cells = " | ".join(spread(found[f"{encoding}, {loss}"]) for loss in COLUMNS.values())
        about = f"{bench.bytes[encoding]:.0f} | {bench.angles[encoding]:.1f}°"
        print(f"| {encoding} | {about} | {cells} |")
    print("\n## By teacher (KL)\n")
    print("| teacher | its own | student | gain |\n| --- | ---: | ---: | ---: |")
    own = {name: bench.accuracy_of_teacher(*teacher) for name, teacher in teachers.items()}
    for name in teachers:
        taught = found[f"teacher {name}" if stores[name] != best else f"{EXACT}, kl"]
        gain = 100 * (statistics.mean(taught) - alone)
        print(f"| {name} | {100 * own[name]:.2f} | {spread(taught)} | {gain:+.2f} |")
    print("\n## By distance\n\n| distance | answers | semantic accuracy |\n| --- | --- | ---: |")
    for name, accuracies in found.items():
        answers, _, distance = name.partition(", ")
        if answers == EXACT or distance not in ("", *COLUMNS.values()):
            answers = "almost exact" if answers == EXACT else answers
            print(f"| {distance} | {answers} | {spread(accuracies)} |")
    print(flush=True)
    return {"accuracy": found, "bytes_per_view": bench.bytes, "teachers": own}


if __name__ == "__main__":
    main()
