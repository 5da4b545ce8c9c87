"""How far apart two stores' answers are, row by row, in terms of what they stand for."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.store.format.codes import Codes
from distill.store.format.manifest import Manifest
from distill.targets.encoding import Answers, mass
from distill.targets.rows import TargetRows


def dense_probs(
    rows: TargetRows, slots: Sequence[int], sizes: Sequence[int], answers: Answers = "softmax"
) -> list[NDArray[np.float64]]:
    """Hierarchy by hierarchy, [rows, n_k]: kept probabilities, and the rest spread evenly."""
    parts = []
    for k, stop in enumerate(accumulate(slots)):
        index, prob = (a[:, stop - slots[k] : stop] for a in (rows.index, rows.prob))
        kept = (prob > 0).sum(1)
        total = mass(answers, rows.confidence[:, k], sizes[k])
        tail = np.maximum(0, total - prob.sum(1)) / np.maximum(1, sizes[k] - kept)
        part = np.repeat(tail[:, None].astype(np.float64), sizes[k], axis=1)
        row, slot = np.nonzero(prob > 0)
        part[row, index[row, slot]] = prob[row, slot]
        parts.append(part)
    return parts


def steps_apart(manifest: Manifest, first: Codes, second: Codes) -> NDArray[np.int64]:
    """[rows]: the largest difference of a class's probability, in steps of one encoding.

    What one side kept and the other did not counts by how far it is above the other's least kept.
    """
    worst = np.zeros(len(first), np.int64)
    stop = 0
    parts = zip(manifest.slots, manifest.hierarchy.classes_per_hierarchy, strict=True)
    for slots, classes in parts:
        start, stop = stop, stop + slots
        dense, least = [], []
        for codes in (first, second):
            prob = codes.prob[:, start:stop].astype(np.int64)
            dense_row = np.zeros((len(prob), classes), np.int64)
            # From the least: empty slots name class 0, which a full slot may hold.
            for slot in reversed(range(slots)):
                np.put_along_axis(dense_row, codes.index[:, [start + slot]], prob[:, [slot]], 1)
            dense.append(dense_row)
            least.append(prob[:, -1:])
        either = np.where(dense[0] == 0, dense[1] - least[0], dense[0] - least[1])
        one_sided = (dense[0] == 0) ^ (dense[1] == 0)
        apart = np.where(one_sided, np.maximum(0, either), np.abs(dense[0] - dense[1]))
        worst = np.maximum(worst, apart.max(1))
    return worst


def angles_apart(
    first: Sequence[NDArray[Any]],
    second: Sequence[NDArray[Any]],
    confidences: tuple[NDArray[Any], NDArray[Any]],
    answers: Answers = "softmax",
) -> NDArray[np.float64]:
    """[rows], degrees: between the MSE KD gradients of a student that knows nothing.

    first, second: as `dense_probs` gives them. confidences: [rows, hierarchies] of each.
    """
    along, norms = np.zeros(len(first[0])), np.zeros((2, len(first[0])))
    for k, pair in enumerate(zip(first, second, strict=True)):
        n = pair[0].shape[1]
        if answers == "softmax":
            gradients = [
                c[:, k, None].astype(float) * (part - part.mean(1, keepdims=True, dtype=float)) / n
                for c, part in zip(confidences, pair, strict=True)
            ]
        else:
            fresh = 0.5 if answers == "sigmoid" else 1 / sum(part.shape[1] for part in first)
            gradients = [part - fresh for part in pair]
        along += (gradients[0] * gradients[1]).sum(1)
        norms += np.array([(gradient**2).sum(1) for gradient in gradients])
    lengths = np.sqrt(norms)
    cosine = along / np.maximum(lengths[0] * lengths[1], 1e-300)
    same = (lengths == 0).all(0)
    return np.where(same, 0.0, np.degrees(np.arccos(np.clip(cosine, -1, 1))))
