"""A data set that is checked against itself: each image by a teacher that never saw it.

"Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159, section 6) splits the images into
ten folds, trains a model on all but one of them and asks it for the labels of that one. Here each
fold is a run and a store of its own, by the very functions that `distill pretrain` and `distill
precompute` call; so a fold goes on where it was stopped, and `distill inspect` shows what its
teacher believes.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distill.data.formats.tables import Columns
from distill.data.sample_ids import samples_digest
from distill.data.sample_list import fold_of
from distill.data.source import ImageSource, label_indices, open_source
from distill.data.view_policy import PLAIN
from distill.errors import ConfigError
from distill.files import tar_indexes
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.names import WITHOUT_FILE
from distill.models.weights import find_weights
from distill.process_pool import asked_to_stop, map_in_processes, worker_index
from distill.teacher_server.inspect.findings import Rules
from distill.teacher_server.inspect.inspection import open_inspection
from distill.teacher_server.inspect.tag_lists import ListedImages
from distill.teacher_server.precompute.options import PrecomputeOptions
from distill.teacher_server.precompute.run import precompute
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.trainers.models.trained import run_beside
from distill.trainers.process_group import Machine
from distill.trainers.recipe import Recipe
from distill.trainers.training.pretrain import pretrain


@dataclass(frozen=True, kw_only=True)
class FoldWork:
    """Everything that a process needs to train and ask the teacher of one fold.

    location, split, columns, frames, limit: of the images. devices: one for each process at work.
    threads, workers: of this process. max_bad_fraction: of images that cannot be read.
    """

    fold: int
    folds: int
    location: str
    split: str
    columns: Columns
    frames: int
    limit: int | None
    hierarchy: SemanticHierarchy
    recipe: Recipe
    out: str
    devices: tuple[str, ...]
    threads: int
    workers: int
    max_bad_fraction: float

    @property
    def folder(self) -> Path:
        """Where its run lies."""
        return Path(self.out) / f"fold-{self.fold}"

    @property
    def store(self) -> Path:
        """Where its teacher's answers about the held-out images lie."""
        return self.folder / "store"

    def source(self) -> ImageSource:
        """All images."""
        source = open_source(
            self.location,
            self.split,
            indexes=tar_indexes(),
            columns=self.columns,
            frames=self.frames,
        )
        return source.limited(self.limit)


def require_unseen(init: str, source: ImageSource, hierarchy: SemanticHierarchy) -> None:
    """That teachers do not begin with a run of these very images.

    Raises:
        ConfigError: they would have seen what they are to judge.
    """
    if init in WITHOUT_FILE:
        return
    run = run_beside(find_weights(init))
    digest = samples_digest(source.ids, label_indices(source, hierarchy))
    if run.get("dataset_digest") == digest:
        raise ConfigError(
            f"--init {init} was trained on these images, expected a start that never saw them; "
            "pass --init pretrained or random"
        )


def judge_folds(
    works: Sequence[FoldWork],
    source: ImageSource,
    *,
    jobs: int,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Train and ask the teachers of all folds, `jobs` at a time; whether all are done.

    source: all images, as each process opens them again.

    Raises:
        ConfigError: a fold is of no image, or a folder holds another run.
        StoreMismatchError: a folder holds another store.
        DataError: a label is none of the hierarchy's, too many images cannot be read, or a process
        was killed.
    """
    done = 0
    counts = np.bincount(fold_of(source.ids, len(works)), minlength=len(works))
    if not counts.all():
        raise ConfigError(
            f"{len(works)} folds of {len(source)} images found, of which fold {counts.argmin()} "
            "has none, expected images in each; pass fewer --folds"
        )
    label_indices(source, works[0].hierarchy)
    for fold, finished in map_in_processes(judge_fold, works, jobs, stopping=stop):
        if finished:
            done += 1
            say(f"fold {fold}: judged by a teacher of the others; {done} of {len(works)} folds")
    return done == len(works)


def judge_fold(work: FoldWork) -> tuple[int, bool]:
    """The fold, and whether it is done or was stopped. In a process of its own."""
    torch.set_num_threads(work.threads)
    device = torch.device(work.devices[worker_index() % len(work.devices)])
    source = work.source()
    held_out = fold_of(source.ids, work.folds) == work.fold
    work.folder.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # progress of many
        report = pretrain(
            recipe=work.recipe,
            source=source.select(np.flatnonzero(~held_out)),
            validation=None,
            hierarchy=work.hierarchy,
            targets=None,
            out=work.folder,
            machine=Machine(device=device, workers=work.workers),
            max_bad_fraction=work.max_bad_fraction,
            stop=asked_to_stop,
            say=lambda line: None,
        )
        if report.stopped:
            return work.fold, False
        teacher = load_teacher(
            [MemberChoice(name=work.recipe.student, weights=report.student)],
            work.hierarchy,
            device=device,
        )
        said = precompute(
            source=source.select(np.flatnonzero(held_out)),
            teacher=teacher,
            path=work.store,
            options=PrecomputeOptions(
                policy=PLAIN, workers=work.workers, max_bad_fraction=work.max_bad_fraction
            ),
            stopping=asked_to_stop,
        )
    return work.fold, said.store.complete


def judged_images(
    works: Sequence[FoldWork], source: ImageSource, rules: Rules
) -> Iterator[ListedImages]:
    """What the teacher of each fold makes of its images' tags."""
    for work in works:
        yield ListedImages.of(open_inspection(str(work.store), rules=rules), source)
