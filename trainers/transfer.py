"""How well pretrained students learn other tasks: starts × tasks × seeds, as papers tabulate it.

The learning rate is chosen for each start and task on a part of the task's training images, by the
rest of them; with it the start is trained on all of them, once a seed, and judged by the task's
validation images. A start may be several runs, of one pretraining with several seeds; run i goes
with seed i. Every trial is a fine-tuning (`distill.trainers.training.finetune`) of its own.
"""

import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.data.source import ImageSource, has_split, label_indices, open_source
from distill.errors import ConfigError, DataError, NotFiniteError
from distill.files import tar_indexes, write_atomically
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.card import ModelCard
from distill.models.weights import find_weights
from distill.process_pool import asked_to_stop, map_in_processes, worker_index
from distill.settings import make_settings
from distill.trainers.evaluation.tags import TagFile, read_tags
from distill.trainers.models.student import recipe_input
from distill.trainers.process_group import Machine
from distill.trainers.recipe import Recipe
from distill.trainers.training.finetune import LabelledImages, classes_of, finetune
from distill.trainers.training.loop import RunKeeping
from distill.trainers.training.optimizer import require_optimizer

RECORD = "transfer.json"
JUDGING = 5  # every fifth training image judges the learning rates
RANDOM = "random"
# The 97.5% points of Student's t with 1 to 10 degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL_975 = 1.960


@dataclass(frozen=True, kw_only=True)
class Start:
    """runs: weight files, folders of runs, or "random"; one for each pretraining seed."""

    name: str
    runs: tuple[str, ...]

    @property
    def is_random(self) -> bool:
        """Whether it is of random weights."""
        return RANDOM in self.runs


@dataclass(frozen=True, kw_only=True)
class Task:
    """data: with splits train and val. tags: of images that have any number of them.

    frames: of each clip, where the data are clips.
    """

    name: str
    data: str
    tags: str | None = None
    frames: int = 0

    def open(self, split: str) -> ImageSource:
        """Its images or clips of that split."""
        return open_source(self.data, split, indexes=tar_indexes(), frames=self.frames)

    def labelling(self, source: ImageSource) -> tuple[TagFile | None, SemanticHierarchy]:
        """Its tags, and its classes: those of the tags, else of the training images."""
        if not self.tags:
            return None, classes_of(source)
        tags = read_tags(Path(self.tags))
        return tags, SemanticHierarchy.from_chains(tags.classes, {}, name=self.name)


@dataclass(frozen=True, kw_only=True)
class TransferPlan:
    """What is compared. recipe: of each start, by name; its lr, seed and init are each trial's.

    digests: of weights, images, labels and tags, by what they are of.
    """

    starts: tuple[Start, ...]
    tasks: tuple[Task, ...]
    rates: tuple[float, ...]
    seeds: int
    recipes: Mapping[str, Recipe]
    digests: Mapping[str, str]

    def choosing(self) -> list["Trial"]:
        """The trials that choose learning rates; none where there is nothing to choose."""
        rates = self.rates if len(self.rates) > 1 else ()
        return [
            self._trial(start, task, lr, 0, judging=True)
            for start in self.starts
            for task in self.tasks
            for lr in rates
        ]

    def best(self, figures: Mapping[str, float]) -> dict[tuple[str, str], float]:
        """The learning rate of each start and task. figures: of `choosing`, by key."""
        best = {(s.name, t.name): self.rates[0] for s in self.starts for t in self.tasks}
        most: dict[tuple[str, str], float] = {}
        for trial in self.choosing():
            figure = figures[trial.key]
            if trial.place not in most or figure > most[trial.place]:
                most[trial.place], best[trial.place] = figure, trial.recipe.lr
        return best

    def final(self, best: Mapping[tuple[str, str], float]) -> list["Trial"]:
        """The trials that are reported."""
        return [
            self._trial(start, task, best[start.name, task.name], seed)
            for start in self.starts
            for task in self.tasks
            for seed in range(self.seeds)
        ]

    def _trial(
        self, start: Start, task: Task, lr: float, seed: int, *, judging: bool = False
    ) -> "Trial":
        init = start.runs[seed % len(start.runs)]
        recipe = replace(self.recipes[start.name], init=init, lr=lr, seed=seed)
        return Trial(start=start.name, task=task, recipe=recipe, judging=judging)

    def to_json(self) -> dict[str, Any]:
        """What a record that is gone on with must be of, by name."""
        return {
            "starts": {start.name: asdict(start) for start in self.starts},
            "tasks": {task.name: asdict(task) for task in self.tasks},
            "recipes": {name: recipe.to_json() for name, recipe in self.recipes.items()},
            "digests": dict(self.digests),
        }


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One fine-tuning. judging: on a part of the training images, by the rest of them."""

    start: str
    task: Task
    recipe: Recipe
    judging: bool

    @property
    def place(self) -> tuple[str, str]:
        """Names of its start and its task."""
        return self.start, self.task.name

    @property
    def key(self) -> str:
        """In the record; also its folder."""
        kind = "judging" if self.judging else "final"
        return f"{self.task.name}/{self.start}/{kind}-lr{self.recipe.lr}-seed{self.recipe.seed}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A start on a task. values: by seed, of the task's figure. lr: at an end of the rates?"""

    start: str
    task: str
    lr: float
    lr_at_an_end: bool
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; 0 of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def less(self, other: "Cell") -> tuple[float, float]:
        """Mean difference from another start on the same seeds, half of its 95% interval.

        The interval is Student's, of the differences seed by seed; infinite of one seed.
        """
        differences = [a - b for a, b in zip(self.values, other.values, strict=True)]
        if len(differences) < 2:
            return differences[0], float("inf")
        half = t_975(len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
        return statistics.mean(differences), half


def recipes_of(
    starts: Sequence[Start], given: Mapping[str, Any], student: str | None
) -> dict[str, Recipe]:
    """By name: student and input of each start, beside what is given.

    Random weights have the input of the runs of the same student, where there are any.

    Raises:
        ConfigError: a start's runs are of different students, or none is named for random weights,
        or there is no such optimizer.
    """
    own = {start.name: _student_of(start, student) for start in starts}
    of_runs = [own[start.name] for start in starts if not start.is_random]
    like = next((each for each in of_runs if each["student"] == student), {})
    recipes = {
        start.name: make_settings(
            Recipe, {**(like if start.is_random else {}), **own[start.name], **given}
        )
        for start in starts
    }
    require_optimizer(next(iter(recipes.values())))  # `given` for all
    return recipes


def _student_of(start: Start, student: str | None) -> dict[str, Any]:
    if start.is_random:
        if {*start.runs} != {RANDOM}:
            raise ConfigError(f"{start.name}: random and runs found, expected names of their own")
        if not student:
            raise ConfigError(f"{start.name}=random found, expected --student to know what of")
        return {"student": student}
    cards = {run: ModelCard.read(find_weights(run)) for run in start.runs}
    if absent := [run for run, card in cards.items() if card is None]:
        raise ConfigError(f"{absent[0]}: no model card found, expected the folder of a run")
    found = {(card.model, card.input) for card in cards.values() if card}
    if len(found) > 1:
        names = ", ".join(f"{model} at {size}" for model, size in sorted(found, key=str))
        raise ConfigError(f"{start.name}: runs of {names} found, expected one student")
    ((model, expected),) = found
    return {"student": model, "image_size": expected.size[0], **recipe_input(expected, model)}


def transfer(
    plan: TransferPlan,
    out: Path,
    *,
    jobs: int,
    devices: Sequence[str],
    threads: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> list[Cell]:
    """Run what is not in the record yet; all cells, or none where it was stopped.

    Raises:
        ConfigError: `out` holds the record of another plan.
    """
    record = TransferRecord(out, plan)

    def run(trials: Sequence[Trial]) -> bool:
        todo = [trial for trial in trials if trial.key not in record.figures]
        units = [
            PlacedTrial(trial=trial, out=str(out), devices=tuple(devices), threads=threads)
            for trial in todo
        ]
        for done, (key, figure) in enumerate(
            map_in_processes(run_trial, units, jobs, stopping=stop), 1
        ):
            if figure is not None:
                record.add(key, figure)
                say(f"{done} of {len(todo)}: {key}: {100 * figure:.2f}%")
        return all(trial.key in record.figures for trial in trials)

    if not run(plan.choosing()):
        return []
    best = plan.best(record.figures)
    final = plan.final(best)
    if not run(final):
        return []
    return [
        Cell(
            start=start,
            task=task,
            lr=lr,
            lr_at_an_end=len(plan.rates) > 1 and lr in (min(plan.rates), max(plan.rates)),
            values=tuple(
                record.figures[trial.key] for trial in final if trial.place == (start, task)
            ),
        )
        for (start, task), lr in best.items()
    ]


class TransferRecord:
    """Figures of the trials that are done, by key, in a file that is whole at every moment.

    Starts, tasks, rates and seeds may come and go; those of the same name must be the same.
    """

    def __init__(self, out: Path, plan: TransferPlan) -> None:
        self._path, given = out / RECORD, json.loads(json.dumps(plan.to_json()))
        self._plan: dict[str, dict[str, Any]] = given
        self.figures: dict[str, float] = {}
        if self._path.exists():
            try:
                found = json.loads(self._path.read_text())
                before = {kind: dict(found["plan"][kind]) for kind in given}
                self.figures = dict(found["figures"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{self._path}: not a record ({error}); delete it") from error
            self._plan = {kind: self._joined(kind, before[kind], given[kind]) for kind in given}
        self._write()

    def _joined(
        self, kind: str, before: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        for name in given.keys() & before.keys():
            if given[name] != before[name]:
                raise ConfigError(
                    f"{self._path}: {name} is of other {kind} there, expected those of this "
                    "command; repeat the command it was made with, give it another name, or "
                    "choose another --out"
                )
        return {**before, **given}

    def add(self, key: str, figure: float) -> None:
        """One more."""
        self.figures[key] = figure
        self._write()

    def _write(self) -> None:
        document = {"plan": self._plan, "figures": dict(sorted(self.figures.items()))}
        write_atomically(self._path, (json.dumps(document, indent=1) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class PlacedTrial:
    """A trial, and where it may run: each process has one device for all of its trials."""

    trial: Trial
    out: str
    devices: tuple[str, ...]
    threads: int


def run_trial(unit: PlacedTrial) -> tuple[str, float | None]:
    """Key and figure: top-1, or macro mAP of tags; None where it was stopped. In a process of its
    own.
    """
    torch.set_num_threads(unit.threads)
    key = unit.trial.key
    try:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress of many
            return key, _figure(unit)
    except NotFiniteError as error:
        if unit.trial.judging:  # a learning rate that is no good
            return key, 0.0
        raise NotFiniteError(f"{key}: {error}") from error


def _figure(unit: PlacedTrial) -> float | None:
    trial, task = unit.trial, unit.trial.task
    folder = Path(unit.out) / trial.key
    source = task.open("train")
    tags, classes = task.labelling(source)
    if trial.judging:
        judge = np.arange(len(source)) % JUDGING == 0
        training, validation = (source.select(np.flatnonzero(part)) for part in (~judge, judge))
    else:
        training, validation = source, task.open("val")
    folder.mkdir(parents=True, exist_ok=True)
    report = finetune(
        recipe=replace(trial.recipe, scheme="multi-label" if tags else "single-label"),
        training=LabelledImages.of(training, tags, classes),
        validation=LabelledImages.of(validation, tags, classes),
        classes=classes,
        targets=None,
        samples=None,
        out=folder,
        machine=Machine(
            device=torch.device(unit.devices[worker_index() % len(unit.devices)]), workers=0
        ),
        keeping=RunKeeping(validate_every=trial.recipe.epochs),
        stop=asked_to_stop,
        say=lambda line: None,
    )
    if report.stopped:
        return None
    assert report.validation
    figure = float(report.validation["macro_map" if tags else "top1"])
    shutil.rmtree(folder)
    return figure


def digests_of(
    starts: Sequence[Start], tasks: Sequence[Task], say: Callable[[str], None]
) -> dict[str, str]:
    """SHA-256 of all weights, and of ids, labels and tags of each task's images.

    Says what each task was taken for: data with its labels or tags, and images to judge by.

    Raises:
        DataError: it is not, or images to judge by have other classes.
    """
    runs = {run for start in starts for run in start.runs if run != RANDOM}
    found = {run: sha256(find_weights(run).read_bytes()).hexdigest() for run in sorted(runs)}
    for task in tasks:
        source = task.open("train")
        if not has_split(task.data, "val"):
            raise DataError(
                f"{task.data}: no split val found, expected images to judge {task.name} by"
            )
        judged = task.open("val")
        about, (tags, classes) = sha256(), task.labelling(source)
        for images in (source, judged):
            for line in images.describe():
                say(f"data: {task.name}: {line}")
            given = (
                tags.present(images, classes.synsets) if tags else label_indices(images, classes)
            )
            about.update(np.ascontiguousarray(images.ids, "<u8").data)
            about.update(given.tobytes())
        found[task.name] = about.hexdigest()
    return found


def t_975(degrees: int) -> float:
    """The 97.5% point of Student's t; beyond the table by Cornish and Fisher's expansion."""
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    z = NORMAL_975
    first = (z**3 + z) / (4 * degrees)
    return z + first + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _interval(half: float) -> str:
    """Nothing where one seed says nothing of it."""
    return "" if half == float("inf") else f" ± {100 * half:.2f}"


def as_table(cells: Sequence[Cell]) -> Iterator[str]:
    """Markdown: accuracy by start and task, then differences from the first start."""
    starts = list(dict.fromkeys(cell.start for cell in cells))
    tasks = list(dict.fromkeys(cell.task for cell in cells))
    by_place = {(cell.start, cell.task): cell for cell in cells}
    yield "| % | " + " | ".join(tasks) + " |"
    yield "| --- |" + " ---: |" * len(tasks)
    for start in starts:
        row = [by_place[start, task] for task in tasks]
        shown = (f"{100 * cell.mean:.2f} ± {100 * cell.deviation:.2f}" for cell in row)
        yield f"| {start} | " + " | ".join(shown) + " |"
    if len(starts) > 1:
        yield ""
        yield f"| less {starts[0]}, points (95%) | " + " | ".join(tasks) + " |"
        yield "| --- |" + " ---: |" * len(tasks)
        for start in starts[1:]:
            pairs = [by_place[start, task].less(by_place[starts[0], task]) for task in tasks]
            shown = (f"{100 * mean:+.2f}{_interval(half)}" for mean, half in pairs)
            yield f"| {start} | " + " | ".join(shown) + " |"
