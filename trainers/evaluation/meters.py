"""Meters: each sees logits batch by batch and ends in figures.

A meter knows the labels of all images by row, so that one pass over the images feeds several. It
counts on the device and asks nothing of it before the end.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MultilabelAveragePrecision

from distill.hierarchy.semantic import SemanticHierarchy
from distill.losses.accuracy import SemanticAccuracyMeter
from distill.losses.baselines import present_classes
from distill.trainers.evaluation.average_precision import BinnedAveragePrecision
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.process_group import World

Labels = NDArray[np.int64]
UNSURE = -1  # a decision that is not judged
MOST_SCORES = 50_000_000  # above as many, average precision counts them in bins


@runtime_checkable
class Meter(Protocol):
    """update: on each batch of a process. result: on all processes, of all of them."""

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """Add the logits of those images."""
        ...

    def result(self, world: World) -> Mapping[str, Any]:
        """Figures by name; shares in [0, 1]."""
        ...


class SemanticMeter:
    """Top-1 of each hierarchy, and in total. labels: [n] class indices."""

    def __init__(
        self,
        labels: Labels,
        hierarchy: SemanticHierarchy,
        reading: LogitsMeaning,
        device: torch.device,
    ) -> None:
        self.hierarchy, self.reading = hierarchy, reading
        self._labels = torch.from_numpy(labels).to(device)
        self._meter = SemanticAccuracyMeter(hierarchy, device)

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        scores = self.reading.scores_within(logits, self.hierarchy)
        self._meter.update(logits=scores, labels=self._labels[rows])

    def result(self, world: World) -> dict[str, Any]:
        """See `Meter`."""
        return _figures("semantic_top1", self._meter, world)


class MissingTagsMeter:
    """Does a model supply the tags that are missing?

    Of images tagged with an ancestor of their true class, or not at all: top-1 in the hierarchies
    below the tag. tagged, true: [n] class indices.
    """

    def __init__(
        self,
        *,
        tagged: Labels,
        true: Labels,
        hierarchy: SemanticHierarchy,
        reading: LogitsMeaning,
        device: torch.device,
    ) -> None:
        self.hierarchy, self.reading = hierarchy, reading
        self._meter = SemanticAccuracyMeter(hierarchy, device)
        self._tagged = torch.from_numpy(tagged).to(device)
        self._true = torch.from_numpy(true).to(device)

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        tagged = self.hierarchy.semantic_labels(self._tagged[rows])
        true = self.hierarchy.semantic_labels(self._true[rows])
        right_so_far = ((tagged < 0) | (tagged == true)).all(1, keepdim=True)
        missing = (tagged < 0) & (true >= 0) & right_so_far
        scores = self.reading.scores_within(logits, self.hierarchy)
        self._meter.count(logits=scores, expected=torch.where(missing, true, -1))

    def result(self, world: World) -> dict[str, Any]:
        """See `Meter`."""
        return _figures("missing_tag_recovery", self._meter, world)


class SingleLabelMeter:
    """Top-1 and top-5 among `candidates` (class indices), as a single answer.

    Images whose label is no candidate are passed over. among: for the names of the figures.
    """

    def __init__(
        self,
        labels: Labels,
        hierarchy: SemanticHierarchy,
        reading: LogitsMeaning,
        candidates: Sequence[int],
        device: torch.device,
        *,
        among: str = "",
    ) -> None:
        self.hierarchy, self.reading, self.suffix = hierarchy, reading, among and f"_{among}"
        place = np.full(hierarchy.num_classes + 1, -1, np.int64)
        place[list(candidates)] = np.arange(len(candidates))
        self._places = torch.from_numpy(place[labels]).to(device)
        self._candidates = torch.tensor(candidates, device=device)
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # top 1, top 5, all

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        scores = self.reading.scores(logits, self.hierarchy)
        every = len(self._candidates) == scores.shape[1]
        candidate_scores = scores if every else scores[:, self._candidates]
        wanted = self._places[rows]
        best = candidate_scores.topk(min(5, candidate_scores.shape[1]), 1).indices
        hits = best == wanted[:, None]
        self.counts += torch.stack([hits[:, 0].sum(), hits.any(1).sum(), (wanted >= 0).sum()])

    def result(self, world: World) -> dict[str, Any]:
        """Figures are missing where no image was judged."""
        top1, top5, judged = world.sum(self.counts).tolist()
        figures = {f"top1{self.suffix}": top1, f"top5{self.suffix}": top5}
        return {name: count / judged for name, count in figures.items()} if judged else {}


class MultiLabelMeter:
    """Mean average precision over all decisions (micro) and over classes that occur (macro).

    present: of rows, which classes each image has, [rows, classes], and which images are judged,
    [rows]; both on the CPU. Exact up to 50 million scores, beyond that counted in bins.
    """

    def __init__(
        self,
        present: Callable[
            [list[int]], tuple[Shaped[Tensor, "rows classes"], Bool[Tensor, " rows"]]
        ],
        hierarchy: SemanticHierarchy,
        reading: LogitsMeaning,
        images: int,
        device: torch.device,
    ) -> None:
        self.hierarchy, self.reading, self._present = hierarchy, reading, present
        classes = hierarchy.num_classes
        self._binned = self._metrics = None
        if images * classes > MOST_SCORES:
            self._binned = BinnedAveragePrecision(classes, device)
            return
        self._metrics = {
            average: MultilabelAveragePrecision(
                classes, average=average, ignore_index=UNSURE, validate_args=False
            ).to(device)
            for average in ("micro", "none")
        }
        self._occurs = torch.zeros(classes, dtype=torch.int64, device=device)
        # A process may have no image at all, and must still take part in gathering.
        none = torch.zeros(0, classes, device=device)
        for metric in self._metrics.values():
            metric.update(none, none.long())

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        given, judged = self._present(rows)
        given = given[judged].to(logits.device).long()
        probs = self.reading.probs(logits, self.hierarchy)
        probs = probs[judged.to(probs.device)]
        if self._binned:
            self._binned.update(probs, given)
        for metric in (self._metrics or {}).values():
            metric.update(probs, given)
        if self._metrics:
            self._occurs += (given == 1).sum(0)

    def result(self, world: World) -> dict[str, Any]:
        """See `Meter`; torchmetrics gathers from other processes by itself."""
        if self._binned:
            world.sum(self._binned.counts)
            if not self._binned.counts[1].any():
                return {}
            return {"micro_map": self._binned.micro(), "macro_map": self._binned.macro()}
        assert self._metrics
        occurs = world.sum(self._occurs) > 0
        if not occurs.any():
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes that do not occur
            each: Tensor = self._metrics["none"].compute()
        return {
            "micro_map": self._metrics["micro"].compute().item(),
            "macro_map": each[occurs].mean().item(),
        }


def label_meter(
    labels: Labels, hierarchy: SemanticHierarchy, reading: LogitsMeaning, device: torch.device
) -> MultiLabelMeter:
    """Make a meter of labels [n] with all their ancestors; unlabelled images are skipped."""
    given = torch.from_numpy(labels)
    return MultiLabelMeter(
        lambda rows: (present_classes(given[rows], hierarchy), given[rows] >= 0),
        hierarchy,
        reading,
        len(labels),
        device,
    )


def tag_meter(
    tags: NDArray[np.int8],
    classes: SemanticHierarchy,
    reading: LogitsMeaning,
    device: torch.device,
) -> MultiLabelMeter:
    """Make a meter of tags [n, classes], -1 where unsure; an image without tags counts."""
    given = torch.from_numpy(tags)
    return MultiLabelMeter(
        lambda rows: (given[rows], torch.ones(len(rows), dtype=torch.bool)),
        classes,
        reading,
        len(tags),
        device,
    )


class RealMeter:
    """Whether a model's one answer is among the reassessed labels of the image.

    Beyer et al. 2020 (arXiv 2006.07159). allowed: classes by row; images without any are skipped.
    answerable: classes that the answer is among, all by default; of a hierarchy they must exclude
    one another, because an ancestor is never less probable.
    """

    def __init__(
        self,
        allowed: Sequence[Sequence[int]],
        answerable: Sequence[int] | None,
        hierarchy: SemanticHierarchy | None,
        reading: LogitsMeaning,
        device: torch.device,
    ) -> None:
        table = np.full((len(allowed), max(1, *map(len, allowed))), -1, np.int64)
        for row, classes in enumerate(allowed):
            table[row, : len(classes)] = classes
        self._allowed = torch.from_numpy(table).to(device)
        self._hierarchy, self._reading = hierarchy, reading
        self._answerable = None if answerable is None else torch.tensor(answerable, device=device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)

    def update(self, *, logits: Float[Tensor, "batch classes"], rows: list[int]) -> None:
        """See `Meter`."""
        scores = self._reading.scores(logits, self._hierarchy) if self._hierarchy else logits
        if self._answerable is None:
            answers = scores.argmax(1, keepdim=True)
        else:
            answers = self._answerable[scores[:, self._answerable].argmax(1, keepdim=True)]
        allowed = self._allowed[rows]
        hits = (allowed == answers).any(1)
        self.counts += torch.stack([hits.sum(), (allowed >= 0).any(1).sum()])

    def result(self, world: World) -> dict[str, Any]:
        """Figures are missing where no image was judged."""
        right, judged = world.sum(self.counts).tolist()
        return {"real_top1": right / judged, "real_images": judged} if judged else {}


def _figures(name: str, meter: SemanticAccuracyMeter, world: World) -> dict[str, Any]:
    """Combine the figures of all processes; None where no image was measured."""
    world.sum(meter.right)
    world.sum(meter.judged)
    accuracy = meter.result()
    shares = [
        share if n else None
        for share, n in zip(accuracy.per_hierarchy, accuracy.counts, strict=True)
    ]
    return {
        name: accuracy.total if sum(accuracy.counts) else None,
        f"{name}_per_hierarchy": shares,
        f"{name}_counts": list(accuracy.counts),
    }
