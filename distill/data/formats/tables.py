"""A table of images: CSV or Parquet with the columns path, and wnid or label, key and split.

Paths are relative to the table's folder, or absolute, or s3://…. A sample's key is in column key;
else it is its path without the suffix.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from distill.data.formats.samples import Sample
from distill.errors import DataError
from distill.storage import S3, place_of

MAX_NAME = 4096
SUFFIXES = (".csv", ".parquet")
LABEL_COLUMNS = ("wnid", "label")


def is_manifest(path: str) -> bool:
    """Whether a file of that name is one."""
    return path.lower().endswith(SUFFIXES)


def splits_of_manifest(path: str) -> set[str]:
    """What stands in its column split."""
    return {str(row["split"]).lower() for row in _rows_of(path) if row.get("split")}


def list_manifest(path: str, splits: Sequence[str]) -> Iterator[Sample]:
    """The images of the rows in one of those splits, or in none.

    Raises:
        DataError: the file cannot be read, or a row has no path.
    """
    folder = path.rpartition("/")[0] or "."
    for number, row in enumerate(_rows_of(path), 1):
        if str(row.get("split") or "").lower() not in ("", *splits):
            continue
        name = row.get("path")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise DataError(
                f"{path}: row {number} has no path, expected columns path, and wnid or label; "
                "key and split if need be"
            )
        if "://" in name and not name.startswith(S3):
            raise DataError(f"{path}: row {number} has path {name!r}, expected a file or s3://…")
        yield _sample_of(row, name, folder)


def _rows_of(path: str) -> Iterator[dict[str, Any]]:
    return _parquet(path) if path.lower().endswith(".parquet") else _csv(path)


def _sample_of(row: Mapping[str, Any], name: str, folder: str) -> Sample:
    label = next(
        (row[column] for column in LABEL_COLUMNS if row.get(column) not in (None, "")), None
    )
    if not isinstance(label, int | None):
        label = str(label).strip()
    stem, dot, suffix = name.rpartition(".")
    if not dot or "/" in suffix:
        stem = name
    place = "" if name.startswith(("/", S3)) else folder
    given = row.get("key")
    key = stem.removeprefix(S3).lstrip("/") if given in (None, "") else str(given)
    return Sample(key, label, place, name=name)


def _csv(path: str) -> Iterator[dict[str, Any]]:
    with (
        place_of(path).open(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield from _rows(text, path)


def _rows(text: Iterable[str], path: str) -> Iterator[dict[str, Any]]:
    try:
        for row in csv.DictReader(text):
            label = row.get("label")  # numbers are class indices
            yield {**row, "label": int(label)} if label and label.isdecimal() else row
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); write it again") from error


def _parquet(path: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: Parquet needs pyarrow; pip install '.[arrow]', or write CSV"
        ) from error
    try:
        with place_of(path).open(path) as file:
            table = pyarrow.parquet.ParquetFile(file)
            wanted = {"path", "key", "split", *LABEL_COLUMNS}
            columns = [name for name in table.schema_arrow.names if name in wanted]
            for batch in table.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write it again") from error
