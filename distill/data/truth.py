"""True classes of images whose tags may be less precise, where somebody knows them."""

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.source import ImageSource
from distill.errors import DataError, HierarchyError
from distill.hierarchy.semantic import SemanticHierarchy


def read_truth(path: Path, source: ImageSource, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """[n]: the true class index of each sample, from CSV with columns key and true_wnid.

    Raises:
        DataError: a sample is missing, a class is not of the label set, or the file has no such
        columns.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            known = {row["key"]: row["true_wnid"] or "" for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: cannot be read as true classes ({error}), expected CSV with the columns key "
            "and true_wnid"
        ) from error
    absent = [sample.key for sample in source.samples if sample.key not in known]
    if absent:
        raise DataError(
            f"{path}: lacks {len(absent)} of the {len(source)} samples in {source.location} (first:"
            f" {absent[0]!r}); expected a line for each"
        )
    try:
        return np.array([hierarchy.index(known[sample.key]) for sample in source.samples], np.int64)
    except HierarchyError as error:
        raise DataError(f"{path}: {error}") from error
