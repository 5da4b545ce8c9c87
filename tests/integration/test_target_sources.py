"""What every source of targets must do: a store, a live server, a teacher in the process."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.images import read_image
from distill.data.source import ImageSource, label_indices, open_source
from distill.data.view_policy import ViewPolicy
from distill.data.views import draw_view, render_view
from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.semantic import semantic_kd_loss
from distill.store.logit_store import LogitStore
from distill.store.views.cache import Cache
from distill.targets.protocol import TrainingTargets
from distill.targets.tensors import DenseTargets, TargetSource, TeacherTargets, densify
from distill.teacher_server.teacher.teacher import Teacher
from distill.trainers.sources.in_process import InProcessTargets
from distill.trainers.sources.store import StoreTargets


@dataclass
class Asked:
    """A source, and the images that it is asked about."""

    targets: Any
    images: ImageSource

    def pixels(self, rows: NDArray[np.int64], view: int) -> list[Tensor]:
        """As the training loop hands them over: where the source wants them."""
        if not self.targets.sizes:
            return []
        drawn = [
            render_view(
                read_image(self.images.samples[int(row)]),
                draw_view(ViewPolicy(), self.images.ids[row], view),
                (32, 32),
            )
            for row in rows
        ]
        return [torch.stack(drawn)]

    def fetch(self, rows: list[int] | NDArray[np.int64], view: int) -> TeacherTargets:
        """Of those images."""
        rows = np.asarray(rows)
        said: TeacherTargets = self.targets.fetch(
            self.images.ids[rows], self.targets.view(view), self.pixels(rows, view)
        )
        return said


@pytest.fixture(params=["store", "server", "server without images", "process"])
def asked(
    request: pytest.FixtureRequest,
    teacher: Teacher,
    serving: Callable[..., Any],
    figures: Path,
    tmp_path: Path,
) -> Iterator[Asked]:
    images = open_source(figures)
    if request.param == "process":
        yield Asked(InProcessTargets(teacher), images)
        return
    if request.param == "server without images":
        with serving(None, data=False) as (_, client):
            yield Asked(client, images)
        return
    store = request.getfixturevalue("store")
    if request.param == "store":
        yield Asked(StoreTargets(LogitStore.open(store), Cache(tmp_path / "own")), images)
        return
    with serving(store, data=False) as (_, client):
        yield Asked(client, images)


def probs(targets: TeacherTargets, hierarchy: SemanticHierarchy) -> Tensor:
    return targets.probs if isinstance(targets, DenseTargets) else densify(targets, hierarchy)


def test_it_answers_in_the_order_asked_whatever_else_is_asked(
    asked: Asked, hierarchy: SemanticHierarchy
) -> None:
    assert isinstance(asked.targets, TargetSource)
    assert isinstance(asked.targets, TrainingTargets)
    assert asked.targets.hierarchy.digest == hierarchy.digest
    rows = np.array([5, 3, 90, 3, 41])
    together = probs(asked.fetch(rows, 1), hierarchy)
    alone = torch.cat([probs(asked.fetch([row], 1), hierarchy) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together[1], together[3], rtol=1e-3, atol=1e-4)
    other = probs(asked.fetch(rows, 0), hierarchy)
    assert (together - other).abs().max() > 0.01  # another view is another answer


def test_all_sources_say_what_the_teacher_says(
    asked: Asked, teacher: Teacher, hierarchy: SemanticHierarchy
) -> None:
    rows = np.arange(96)
    said = asked.fetch(rows, 1)
    drawn = [
        render_view(
            read_image(asked.images.samples[row]),
            draw_view(ViewPolicy(), asked.images.ids[row], 1),
            (32, 32),
        )
        for row in rows.tolist()
    ]
    exact = teacher.targets([torch.stack(drawn)])
    torch.testing.assert_close(probs(said, hierarchy), exact.probs.clone(), rtol=0.05, atol=0.02)
    torch.testing.assert_close(said.confidence, exact.confidence.clone(), rtol=0, atol=0.01)
    assert said.valid is None or said.valid.all()


def test_a_student_can_learn_from_it(asked: Asked, hierarchy: SemanticHierarchy) -> None:
    labels = torch.from_numpy(label_indices(asked.images, hierarchy)[:8])
    logits = torch.zeros(8, 29, requires_grad=True)
    semantic_kd_loss(
        student_logits=logits,
        targets=asked.fetch(np.arange(8), 0).to(torch.device("cpu")),
        labels=labels,
        hierarchy=hierarchy,
    ).backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_announcing_changes_nothing_and_the_order_is_of_all_rows(
    asked: Asked, hierarchy: SemanticHierarchy
) -> None:
    rows = np.arange(10, 20)
    ids = asked.images.ids[rows]
    asked.targets.prepare(0)
    asked.targets.announce(ids, asked.targets.view(1), asked.pixels(rows, 1))
    announced = probs(asked.fetch(rows, 1), hierarchy)
    torch.testing.assert_close(announced, probs(asked.fetch(rows, 1), hierarchy))
    order = asked.targets.sample_order(96, 0).epoch(3)
    assert sorted(order.tolist()) == [*range(96)]


def test_its_views_are_drawn_by_number(asked: Asked) -> None:
    for epoch in range(4):
        drawn = asked.targets.drawn_view(epoch)
        assert drawn == (epoch if asked.targets.sizes else epoch % 2)
