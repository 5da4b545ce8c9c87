"""Labels that several models propose for images, as questions for raters.

After "Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159), section 3.1 and appendix
A: proposals are pooled from models of different kinds; an image of which all say what its tag says
is not rated. A model brings up its first answer for each image, and those of its answers that are
among the most confident of the whole data set, once by logit and once by probability. A label that
is brought up once in all is dropped, if it is not the image's tag. Of the models the fewest are
taken that find enough of what experts say is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from distill.errors import DataError
from distill.hierarchy import hypernyms
from distill.hierarchy.semantic import SemanticHierarchy

PER_QUESTION = 8  # labels that a rater is asked about at a time
TWICE = 2  # times that a label must be brought up
SUBSETS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Proposals:
    """by_row: class → the models that propose it, for each image to be rated.

    agreed: class of each image of which all models say what its tag says.
    """

    by_row: Mapping[int, Mapping[int, Sequence[str]]]
    agreed: Mapping[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPredictions:
    """The most probable classes of one model for each image.

    classes, scores, probs: [n, k], best first. seen: [n] images that could be read.
    """

    model: str
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    probs: NDArray[np.float32]
    seen: NDArray[np.bool_]

    def votes(self, count: int) -> NDArray[np.int64]:
        """[n, k]: how often each is brought up: as the first of its image, among the `count`
        highest scores, among the `count` highest probabilities.
        """
        votes = np.zeros(self.classes.shape, np.int64)
        votes[:, 0] = 1
        for values in (self.scores, self.probs):
            order = np.argsort(
                np.where(self.seen[:, None], -values, np.inf), axis=None, kind="stable"
            )
            votes.reshape(-1)[order[:count]] += 1
        return np.where(self.seen[:, None], votes, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
    """Models that together find what experts do. precision, recall: of labels on their images."""

    models: tuple[str, ...]
    precision: float
    recall: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """What models bring up.

    rows, classes: [pairs]. votes: [pairs, models]. labels: [n] class of each tag, -1 for none.
    top: [n, models] first answers, -2 where a model could not read the image.
    """

    models: tuple[str, ...]
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    votes: NDArray[np.int64]
    labels: NDArray[np.int64]
    top: NDArray[np.int64]

    @classmethod
    def of(
        cls, models: Sequence[ModelPredictions], labels: NDArray[np.int64], *, per_image: float
    ) -> "Pool":
        """per_image: how many of a model's most confident predictions count, by logit and by
        probability, on average over images.
        """
        count = int(per_image * len(labels))
        named = (labels, *(model.classes for model in models))
        classes = 1 + max(int(each.max(initial=0)) for each in named)
        places, votes = [np.flatnonzero(labels >= 0) * classes + labels[labels >= 0]], []
        for model in models:
            cast = model.votes(count)
            rows, _ = np.nonzero(cast)
            votes.append((rows * classes + model.classes[cast > 0], cast[cast > 0]))
            places.append(votes[-1][0])
        pairs = np.unique(np.concatenate(places))
        table = np.zeros((len(pairs), len(models)), np.int64)
        for column, (where, cast) in enumerate(votes):
            table[np.searchsorted(pairs, where), column] = cast
        return cls(
            models=tuple(model.model for model in models),
            rows=pairs // classes,
            classes=pairs % classes,
            votes=table,
            labels=labels,
            top=np.stack([np.where(each.seen, each.classes[:, 0], -2) for each in models], 1),
        )

    def only(self, models: Sequence[str]) -> "Pool":
        """What some of the models bring up."""
        chosen = [self.models.index(model) for model in models]
        votes, top = self.votes[:, chosen], self.top[:, chosen]
        return replace(self, models=tuple(models), votes=votes, top=top)

    def proposals(self) -> Proposals:
        """What raters are to be asked, and what needs no rating."""
        agree = (self.top == self.labels[:, None]).all(1)
        tag = self.classes == self.labels[self.rows]
        kept = ((self.votes.sum(1) >= TWICE) | tag) & ~agree[self.rows]
        by_row: dict[int, dict[int, list[str]]] = {}
        for pair in np.flatnonzero(kept):
            models = [self.models[m] for m in np.flatnonzero(self.votes[pair])]
            by_row.setdefault(int(self.rows[pair]), {})[int(self.classes[pair])] = models
        agreed = {int(row): int(self.labels[row]) for row in np.flatnonzero(agree)}
        return Proposals(by_row=by_row, agreed=agreed)

    def smallest(self, gold: Mapping[int, Sequence[int]], recall: float) -> Subset:
        """The fewest models whose proposals have that recall; of several the most precise.

        gold: by row, the classes that experts see.

        Raises:
            DataError: all models together have less, or experts see nothing.
        """
        total = sum(len({*labels}) for labels in gold.values())
        if not total:
            raise DataError("the gold standard has no label of these images, expected some")
        of_gold = np.flatnonzero(np.isin(self.rows, list(gold)))
        rows, classes = self.rows[of_gold], self.classes[of_gold]
        tag = (classes == self.labels[rows])[:, None]
        truth = np.array([c in gold[r] for r, c in zip(rows, classes, strict=True)], np.float64)
        votes = self.votes[of_gold].astype(np.float64)
        other = (self.top != self.labels[:, None])[rows].astype(np.float64)
        best: Subset | None = None
        for size in range(1, len(self.models) + 1):
            subsets = combinations(range(len(self.models)), size)
            while some := list(islice(subsets, SUBSETS_AT_ONCE)):
                member = np.zeros((len(self.models), len(some)))
                for column, subset in enumerate(some):
                    member[list(subset), column] = 1
                # Where all agree with the tag, nothing else is asked.
                proposed = ((votes @ member >= TWICE) & (other @ member > 0)) | tag
                hits = truth @ proposed
                found, right = hits / total, hits / np.maximum(1, proposed.sum(0))
                fit = np.flatnonzero(found >= recall).tolist() if size < len(self.models) else [0]
                for column in fit:
                    if best is None or right[column] > best.precision:
                        models = tuple(self.models[m] for m in some[column])
                        best = Subset(
                            models=models,
                            precision=float(right[column]),
                            recall=float(found[column]),
                        )
            if best:
                break
        assert best
        if best.recall < recall:
            raise DataError(
                f"all {len(self.models)} models together propose {best.recall:.1%} of the labels "
                f"that experts see, expected {recall:.1%}; add models, or raise --per-image"
            )
        return best


def in_questions(classes: Sequence[int], hierarchy: SemanticHierarchy) -> list[list[int]]:
    """At most eight at a time; neighbours in WordNet, or in the hierarchy, stay together."""
    ordered = sorted(classes, key=lambda c: _path(hierarchy, c))
    parts = -(-len(ordered) // PER_QUESTION)
    return [part.tolist() for part in np.array_split(np.array(ordered, np.int64), parts)]


def _path(hierarchy: SemanticHierarchy, c: int) -> tuple[str, ...]:
    """From the root down to a class; in that order, what lies below one class is a range."""
    synset = hierarchy.synsets[c]
    known = hypernyms.is_known(synset)
    above = hypernyms.ancestors(synset) if known else hierarchy.ancestors(synset)
    return (*reversed(above), synset)
