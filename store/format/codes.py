"""Teacher answers as the small integers that a store keeps, and back.

A probability is a multiple of 1 / prob_steps: the distortion that turns a squared-error gradient is
absolute, so even steps waste no bits on small probabilities. Confidence and ΣT² follow closely from
the kept probabilities; a store keeps what is left of them after that prediction, which is small and
compresses to a fraction of a byte. All of it is integer arithmetic, the same everywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.targets.encoding import Answers, EncodingSpec
from distill.targets.rows import TargetRows

SQ_NORM_UNITS = 1024
CONFIDENCE_UNITS_AT_LEAST = 5000  # a unit is at most 2e-4, so confidence is at most 1e-4 off
ANSWER_ARRAYS = ("index", "prob", "confidence", "sq_norm")
FIELDS = (*ANSWER_ARRAYS, "valid")  # of rows; `valid` is stored as a confidence code of 0

# A block of one view as it is stored: each array [slots or hierarchies, rows].
StoredBlock = Mapping[str, NDArray[Any]]


class Codes(TargetRows):
    """Rows as integers: probabilities in steps, confidence and ΣT² in units of `Coding`."""


@dataclass(frozen=True)
class Coding:
    """How one store turns answers into integers."""

    spec: EncodingSpec
    classes_per_hierarchy: tuple[int, ...]
    answers: Answers = "softmax"

    @property
    def confidence_units(self) -> int:
        """A confidence of 1, of sigmoids a mean of 1, else a mass; a multiple of prob_steps."""
        steps = self.spec.prob_steps
        return steps * ceil(CONFIDENCE_UNITS_AT_LEAST / steps)

    @property
    def dtypes(self) -> dict[str, Any]:
        """The dtype of each field, stored or not."""
        return {
            "index": np.dtype(np.uint8 if max(self.classes_per_hierarchy) <= 256 else np.uint16),
            "prob": np.dtype(np.uint8 if self.spec.prob_steps <= 255 else np.uint16),
            "confidence": np.dtype(np.uint16 if self.confidence_units < 2**15 else np.uint32),
            # ΣT² of one softmax is at most 1, of sigmoids as much as there are classes.
            "sq_norm": np.dtype(np.uint32 if self.answers == "sigmoid" else np.uint16),
            "valid": np.dtype(np.bool_),
        }

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each field; `valid` has none."""
        slots, hierarchies = sum(self.spec.entries), len(self.classes_per_hierarchy)
        return {"index": slots, "prob": slots, "confidence": hierarchies, "sq_norm": hierarchies}

    @property
    def most_squares(self) -> int:
        """The largest ΣT² that answers can have."""
        return max(self.classes_per_hierarchy) if self.answers == "sigmoid" else 1

    def quantise(self, answers: TargetRows) -> Codes:
        """To the nearest code. Rows that are not valid become all zero: the same bytes always."""
        prob = np.floor(answers.prob.astype(np.float64) * self.spec.prob_steps + 0.5)
        coded = {
            "index": np.where(prob > 0, answers.index, 0),
            "prob": np.clip(prob, 0, self.spec.prob_steps),
            "confidence": _in_units(answers.confidence, self.confidence_units, most=1),
            "sq_norm": _in_units(answers.sq_norm, SQ_NORM_UNITS, most=self.most_squares),
        }
        valid = answers.valid.astype(np.bool_)
        dtypes = self.dtypes
        return Codes(
            **{n: np.where(valid[:, None], c, 0).astype(dtypes[n]) for n, c in coded.items()},
            valid=valid,
        )

    def dequantise(self, codes: TargetRows) -> TargetRows:
        """Back to numbers."""
        return TargetRows(
            index=codes.index.astype(np.int32),
            prob=np.divide(codes.prob, np.float32(self.spec.prob_steps), dtype=np.float32),
            confidence=_scaled(codes.confidence, self.confidence_units),
            sq_norm=_scaled(codes.sq_norm, SQ_NORM_UNITS),
            valid=codes.valid,
        )

    def to_stored(self, codes: Codes) -> StoredBlock:
        """Column after column, confidence and ΣT² as what their prediction leaves.

        A confidence code is one more than that, so that 0 is free for rows that are not valid.
        """
        prob = np.ascontiguousarray(codes.prob.T)
        valid, dtypes, sums = codes.valid, self.dtypes, self._sums(prob)
        own = {n: getattr(codes, n).T.astype(np.int64) for n in ("confidence", "sq_norm")}
        left = {
            "confidence": own["confidence"] - self._predicted_confidence(sums),
            "sq_norm": own["sq_norm"] - self._predicted_squares(sums, own["confidence"]),
        }
        return {
            "index": np.ascontiguousarray(codes.index.T),
            "prob": prob,
            "confidence": np.where(valid, _zigzag(left["confidence"]) + 1, 0).astype(
                dtypes["confidence"]
            ),
            "sq_norm": np.where(valid, _zigzag(left["sq_norm"]), 0).astype(dtypes["sq_norm"]),
        }

    def from_stored(self, stored: StoredBlock) -> Codes:
        """The inverse of `to_stored`; its arrays are views, rows first."""
        valid, dtypes, sums = stored["confidence"][0] > 0, self.dtypes, self._sums(stored["prob"])
        left = _unzigzag(stored["confidence"].astype(np.int32) - 1)
        confidence = np.where(valid, self._predicted_confidence(sums) + left, 0)
        left = _unzigzag(stored["sq_norm"])
        sq_norm = np.where(valid, self._predicted_squares(sums, confidence) + left, 0)
        columns = {"confidence": confidence, "sq_norm": sq_norm}
        return Codes(
            index=stored["index"].T,
            prob=stored["prob"].T,
            **{name: values.astype(dtypes[name]).T for name, values in columns.items()},
            valid=valid,
        )

    def _sums(self, prob: NDArray[Any]) -> tuple[NDArray[np.int64], ...]:
        """Sums [K, rows] over kept probabilities [slots, rows]: of the largest 5%, of all, of their
        squares, and how many there are.
        """
        steps, rows = self.spec.prob_steps, prob.shape[1]
        counted, total, squares, kept = np.empty((4, len(self.spec.entries), rows), np.int64)
        wide = np.int32 if steps <= 1023 else np.int64  # holds a sum of 1024 squares
        stop = 0
        parts = zip(self.spec.entries, self.classes_per_hierarchy, strict=True)
        for k, (slots, classes) in enumerate(parts):
            start, stop = stop, stop + slots
            part: Any = prob[start:stop].astype(wide)
            np.einsum("sr->r", part[: ceil(classes / 20)], out=counted[k])
            np.einsum("sr->r", part, out=total[k])
            np.einsum("sr,sr->r", part, part, out=squares[k])
            np.add.reduce(part != 0, 0, dtype=np.int64, out=kept[k])
        return counted, total, squares, kept

    def _predicted_confidence(self, sums: tuple[NDArray[np.int64], ...]) -> NDArray[np.int64]:
        """What the kept probabilities alone imply."""
        counted, total, _, _ = sums
        each = self.confidence_units // self.spec.prob_steps
        predicted = (counted if self.answers == "softmax" else total) * each
        if self.answers == "sigmoid":
            predicted //= np.array(self.classes_per_hierarchy)[:, None]
        return predicted

    def _predicted_squares(
        self, sums: tuple[NDArray[np.int64], ...], confidence: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """ΣT² of the kept probabilities and an even tail. confidence: codes [K, rows]."""
        _, total, squares, kept = sums
        steps, classes = self.spec.prob_steps, np.array(self.classes_per_hierarchy)[:, None]
        unkept = np.maximum(1, classes - kept)
        a_step = self.confidence_units // steps
        if self.answers == "sigmoid":
            # Whole steps: with their squares, sums of thousands of sigmoids stay within 64 bits.
            tail = np.maximum(0, confidence * classes // a_step - total) // unkept
            predicted: NDArray[np.int64] = (
                (squares + tail * tail * unkept) * SQ_NORM_UNITS // (steps * steps)
            )
        else:
            mass = steps if self.answers == "softmax" else confidence // a_step
            left = np.maximum(0, mass - total)
            predicted = (squares * unkept + left * left) * SQ_NORM_UNITS // (steps * steps * unkept)
        return predicted


def record_dtype(coding: Coding) -> np.dtype[Any]:
    """One row of codes, side by side: what a decoded view holds."""
    widths, dtypes = coding.widths, coding.dtypes
    return np.dtype(
        [(n, dtypes[n], (widths[n],)) if n in widths else (n, dtypes[n]) for n in FIELDS]
    )


def codes_of(records: NDArray[Any]) -> Codes:
    """The fields of records of `record_dtype`, without a copy."""
    return Codes(**{name: records[name] for name in FIELDS})


def _scaled(codes: NDArray[Any], units: int) -> NDArray[np.float32]:
    scale = np.float32(1 / units)
    values: NDArray[np.float32] = np.multiply(codes, scale, dtype=np.float32, casting="unsafe")
    return values


def _in_units(values: NDArray[Any], units: int, *, most: int) -> NDArray[Any]:
    return np.rint(np.clip(values.astype(np.float64), 0, most) * units).astype(np.int64)


def _zigzag(values: NDArray[Any]) -> NDArray[Any]:
    """0, -1, 1, -2 … as 0, 1, 2, 3 …"""
    values = values.astype(np.int32)
    return (values << 1) ^ (values >> 31)


def _unzigzag(values: NDArray[Any]) -> NDArray[Any]:
    values = values.astype(np.int32)
    return (values >> 1) ^ -(values & 1)
