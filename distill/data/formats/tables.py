"""A table of images: CSV or Parquet with the columns path, and wnid or label, key and split.

Paths are relative to the table's folder, or absolute, or s3://…. A sample's key is in column key;
else it is its path without the suffix.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.data.formats.samples import Sample, label_of_text
from distill.data.formats.skipped import Skipped
from distill.errors import DataError, did_you_mean, optional
from distill.storage.locations import is_remote, place_of

MAX_NAME = 4096
SUFFIXES = (".csv", ".parquet")
PATH_COLUMNS = ("path", "file_name")  # the latter is Hugging Face's
LABEL_COLUMNS = ("wnid", "label", "labels")
SPLIT_COLUMNS = ("split", "subset", "partition")  # in any case
WITHOUT_SPLIT = "rows without a split, where others have one"


@dataclass(frozen=True)
class Columns:
    """The columns of tables and Hugging Face data sets that a user names; None takes the usual."""

    path: str | None = None
    label: str | None = None

    def label_of(self, there: Sequence[str], where: str) -> tuple[str, ...]:
        """Those of labels that are there; of several, a row's first that is filled counts.

        Raises:
            DataError: the one that was named is not.
        """
        return self._chosen(self.label, LABEL_COLUMNS, there, where, "label")

    def path_of(self, there: Sequence[str], where: str) -> str:
        """The column of paths.

        Raises:
            DataError: there is none.
        """
        chosen = self._chosen(self.path, PATH_COLUMNS, there, where, "path")
        if not chosen:
            raise DataError(
                f"{where}: columns {_listed(there)} found, expected {' or '.join(PATH_COLUMNS)}, "
                "with commas between them; --path-column names another"
            )
        return chosen[0]

    @staticmethod
    def _chosen(
        named: str | None, usual: Sequence[str], there: Sequence[str], where: str, option: str
    ) -> tuple[str, ...]:
        if named is None:
            return tuple(name for name in usual if name in there)
        if named not in there:
            raise DataError(
                f"{where}: no column {named!r} found{did_you_mean(named, there)}, expected one of "
                f"{_listed(there)}; correct --{option}-column"
            )
        return (named,)


USUAL = Columns()


def is_manifest(path: str) -> bool:
    """Whether a file of that name is one."""
    return path.lower().endswith(SUFFIXES)


def columns_of_manifest(path: str) -> list[str]:
    """The names of its columns.

    Raises:
        DataError: it cannot be read.
    """
    return [str(name) for name in next(_rows_of(path, None))[1]["columns"]]


def splits_of_manifest(path: str, columns: Columns) -> set[str]:
    """What stands in its column split."""
    if not _split_column(columns_of_manifest(path)):
        return set()  # without a look at all of its rows
    return {row["split"] for _, row in _rows_of(path, columns) if row["split"]}


def list_manifest(
    path: str, splits: Sequence[str], columns: Columns, skipped: Skipped
) -> Iterator[Sample]:
    """The images of the rows in one of those splits; of all rows where none is given.

    Raises:
        DataError: the file cannot be read, or a row has no path.
    """
    folder = path.rpartition("/")[0] or "."
    for line, row in _rows_of(path, columns):
        if splits and row["split"] not in splits:
            if not row["split"]:
                skipped.add(WITHOUT_SPLIT, f"line {line}")
            continue
        name = row["path"]
        where = f"{path}: line {line}"
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise DataError(f"{where} has no path, expected one in every row")
        if "://" in name and not is_remote(name):
            raise DataError(f"{where} has path {name!r}, expected a file, s3://…, or https://…")
        place = "" if name.startswith("/") or is_remote(name) else folder
        _require_text(row, where, place)
        yield _sample_of(row, name, place)


def _sample_of(row: Mapping[str, Any], name: str, place: str) -> Sample:
    label = row["label"]
    if label == -1:  # Hugging Face's "none"
        label = None
    if not isinstance(label, int | None):
        label = label_of_text(str(label).strip())
    stem, dot, suffix = name.rpartition(".")
    if not dot or "/" in suffix:
        stem = name
    given = row.get("key")
    key = stem.rpartition("://")[2].lstrip("/") if given in (None, "") else str(given)
    return Sample(key, label, place, name=name)


def _require_text(row: Mapping[str, Any], where: str, place: str) -> None:
    """Bytes that are no UTF-8 may be part of a file's name, if that file is there; of no label."""
    for column in ("label", "key", "split", "path"):
        value = row.get(column)
        if isinstance(value, str) and not _is_text(value):
            if column == "path" and Path(place, value).exists():
                continue
            shown = value.encode("utf-8", "surrogateescape")
            raise DataError(f"{where}: {column} is {shown!r}, expected UTF-8; save the table so")
        if isinstance(value, str) and "\n" in value:
            raise DataError(
                f"{where}: {column} goes over several lines ({value[:40]!r}), expected one; close "
                "the quotation mark"
            )


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in value)


def _rows_of(path: str, columns: Columns | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line, and path, label, key and split of each row; without `columns`, those of the table."""
    read = _parquet if path.lower().endswith(".parquet") else _csv
    return read(path, columns)


def _csv(path: str, columns: Columns | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with place_of(path).open(path) as file:
        if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: UTF-16 found, expected UTF-8; save the table so")
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text, strict=True)
        try:
            there = [name.strip() for name in next(rows, [])]
            if columns is None:
                yield 1, {"columns": there}
                return
            picked = _picked(columns, there, path)
            for row in rows:
                if len(row) > len(there):
                    raise DataError(
                        f"{path}: line {rows.line_num} has {len(row)} fields, expected "
                        f"{len(there)}; put quotation marks around those with a comma"
                    )
                if row:
                    row += [""] * (len(there) - len(row))
                    yield rows.line_num, _row({name: row[at] for name, at in picked.items()})
        except csv.Error as error:
            raise DataError(
                f"{path}: line {rows.line_num} cannot be read as CSV ({error}); write it again"
            ) from error


def _parquet(path: str, columns: Columns | None) -> Iterator[tuple[int, dict[str, Any]]]:
    with optional("arrow", f"{path}: Parquet"):
        import pyarrow
        import pyarrow.parquet
    try:
        with place_of(path).open(path) as file:
            table = pyarrow.parquet.ParquetFile(file)
            there = list(table.schema_arrow.names)
            if columns is None:
                yield 1, {"columns": there}
                return
            picked, line = _picked(columns, there, path), 0
            wanted = sorted({there[at] for at in picked.values()})
            for batch in table.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    line += 1
                    yield line, _row({name: row[there[at]] for name, at in picked.items()})
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write it again") from error


def _picked(columns: Columns, there: Sequence[str], path: str) -> dict[str, int]:
    """By name of ours, the position of a column."""
    twice = [name for name in dict.fromkeys(there) if there.count(name) > 1]
    labels = enumerate(columns.label_of(there, path))
    picked = {"path": columns.path_of(there, path)} | {f"label {n}": name for n, name in labels}
    picked |= {"key": "key"} if "key" in there else {}
    split = _split_column(there)
    picked |= {"split": split} if split else {}
    if wrong := sorted({*twice} & {*picked.values()}):
        raise DataError(f"{path}: column {wrong[0]!r} appears twice, expected it once; rename one")
    return {ours: there.index(theirs) for ours, theirs in picked.items()}


def _split_column(there: Sequence[str]) -> str | None:
    return next((name for name in there if name.strip().casefold() in SPLIT_COLUMNS), None)


def _row(values: dict[str, Any]) -> dict[str, Any]:
    """One label of those that are filled."""
    labels = [value for name, value in values.items() if name.startswith("label ")]
    filled = next((label for label in labels if label not in (None, "")), None)
    split = values.get("split")
    return {**values, "label": filled, "split": "" if split is None else str(split).strip()}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "") or "none"
