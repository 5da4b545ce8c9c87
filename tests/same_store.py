"""Comparing stores by what they hold."""

from pathlib import Path
from typing import Any

import zarr

from distill.store.format.codes import ANSWER_ARRAYS
from distill.store.format.layout import SAMPLE_ARRAYS
from distill.store.logit_store import LogitStore


def arrays(path: Path | str) -> dict[str, Any]:
    """Every array as Zarr reads it."""
    group: Any = zarr.open_group(path, mode="r")
    return {name: group[name][:] for name in (*ANSWER_ARRAYS, *SAMPLE_ARRAYS)}


def assert_same_arrays(first: Path | str, second: Path | str) -> None:
    a, b = arrays(first), arrays(second)
    assert {*a} == {*b}
    for name in a:
        assert (a[name] == b[name]).all(), name


def assert_same_store(first: Path | str, second: Path | str) -> None:
    """The same arrays under the same certificate."""
    assert_same_arrays(first, second)
    assert LogitStore.open(first).require_complete() == LogitStore.open(second).require_complete()
