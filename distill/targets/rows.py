"""Predictions as NumPy rows, which pass between torch and the store."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Own = TypeVar("Own", bound="TargetRows")


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetRows:
    """n rows of one view, S slots, K hierarchies: `SparseTargets` as NumPy rows."""

    index: NDArray[Any]  # [n, S] position within the slot's hierarchy
    prob: NDArray[Any]  # [n, S]
    confidence: NDArray[Any]  # [n, K]; of sigmoids their mean
    sq_norm: NDArray[Any]  # [n, K]
    valid: NDArray[np.bool_]  # [n]

    def __len__(self) -> int:
        return len(self.valid)

    @classmethod
    def empty(cls, rows: int, slots: int, hierarchies: int) -> "TargetRows":
        """Rows of a teacher that saw nothing yet: all zero, none valid."""
        return cls(
            index=np.zeros((rows, slots), np.int32),
            prob=np.zeros((rows, slots), np.float32),
            confidence=np.zeros((rows, hierarchies), np.float32),
            sq_norm=np.zeros((rows, hierarchies), np.float32),
            valid=np.zeros(rows, np.bool_),
        )

    @classmethod
    def concatenate(cls: "type[Own]", parts: "Sequence[Own]") -> "Own":
        """Rows after rows."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})

    def select(self, rows: NDArray[np.int64]) -> "TargetRows":
        """Those rows, in that order."""
        return TargetRows(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def put(self, rows: NDArray[np.int64], answers: "TargetRows") -> None:
        """Copy `answers` into those rows."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(answers, field.name)
