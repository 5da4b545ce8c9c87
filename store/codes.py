"""Teacher answers as the small integers that a store keeps, and back.

Probabilities are kept on a logarithmic scale: code 0 is 0, and codes 1 to M = 2^bits - 1 stand for
2 ** (octaves · ((code - 1) / (M - 1) - 1)), so the top code is 1. Confidence and ΣT² lie in [0, 1]
and are kept linearly in 16 bits, half a step (7.6e-6) away at most.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.answers import Answers
from distill.encoding import EncodingSpec

LINEAR_STEPS = 65535


class Codes(Answers):
    """Rows as stored: unsigned integers throughout."""


def code_dtypes(spec: EncodingSpec, classes_per_hierarchy: tuple[int, ...]) -> dict[str, Any]:
    """The stored dtype of each field."""
    return {
        "index": np.dtype(np.uint8 if max(classes_per_hierarchy) <= 256 else np.uint16),
        "prob": np.dtype(np.uint8 if spec.prob_bits <= 8 else np.uint16),
        "confidence": np.dtype(np.uint16),
        "sq_norm": np.dtype(np.uint16),
        "valid": np.dtype(np.bool_),
    }


def quantise(answers: Answers, spec: EncodingSpec, classes_per_hierarchy: tuple[int, ...]) -> Codes:
    """To the nearest code. Rows that are not valid become all zero: the same bytes every time."""
    dtypes = code_dtypes(spec, classes_per_hierarchy)
    prob = _prob_codes(answers.prob, spec)
    index = np.where(prob > 0, answers.index, 0)
    coded = {
        "index": index,
        "prob": prob,
        "confidence": _linear_codes(answers.confidence),
        "sq_norm": _linear_codes(answers.sq_norm),
    }
    valid = answers.valid.astype(np.bool_)
    return Codes(
        **{n: np.where(valid[:, None], c, 0).astype(dtypes[n]) for n, c in coded.items()},
        valid=valid,
    )


def dequantise(codes: Codes, spec: EncodingSpec) -> Answers:
    """Back to numbers, by table."""
    return Answers(
        index=codes.index.astype(np.int32),
        prob=prob_table(spec)[codes.prob],
        confidence=codes.confidence * np.float32(1 / LINEAR_STEPS),
        sq_norm=codes.sq_norm * np.float32(1 / LINEAR_STEPS),
        valid=codes.valid,
    )


@lru_cache
def prob_table(spec: EncodingSpec) -> NDArray[np.float32]:
    """[2^bits] float32: the probability of each code."""
    top = 2**spec.prob_bits - 1
    steps = np.arange(top, dtype=np.float64) / (top - 1)
    table = np.concatenate([[0.0], 2.0 ** (spec.prob_octaves * (steps - 1))]).astype(np.float32)
    table.flags.writeable = False
    return table


def _prob_codes(prob: NDArray[Any], spec: EncodingSpec) -> NDArray[Any]:
    top = 2**spec.prob_bits - 1
    octaves = np.log2(np.maximum(prob, 2.0 ** (-2 * spec.prob_octaves)).astype(np.float64))
    codes = 1 + np.rint((octaves / spec.prob_octaves + 1) * (top - 1))
    return np.where(prob < spec.smallest_prob, 0, np.clip(codes, 1, top)).astype(np.int64)


def _linear_codes(values: NDArray[Any]) -> NDArray[Any]:
    return np.rint(np.clip(values.astype(np.float64), 0, 1) * LINEAR_STEPS).astype(np.int64)
