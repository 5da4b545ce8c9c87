"""Hugging Face data sets on a disk, as `datasets.Dataset.save_to_disk` leaves them.

Their Arrow files are not compressed, so each image is a range of bytes in one, like that of a tar.
pyarrow is needed to list them, nothing to read them. Data sets on the hub are Parquet; load one
with `datasets` and save it to disk.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.data.formats.samples import Sample, SampleTable
from distill.data.formats.tables import Columns
from distill.errors import DataError, optional
from distill.storage.locations import is_remote

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
KEY_COLUMNS = ("key", "__key__")
Value = TypeVar("Value")


@dataclass(frozen=True)
class _Columns:
    """Which columns are what; names of the classes where labels are numbers of them."""

    image: str
    key: str | None
    label: str | None
    classes: Sequence[str] | None


def is_arrow(files: Sequence[str]) -> bool:
    """Whether a folder of those files is a data set, or one split of it."""
    return STATE in files and INFO in files


def list_arrow(root: str, named: Columns, split: str | None = None) -> SampleTable:
    """The images of one split. split: its name, where the folder above says it.

    A sample's key is in column key or __key__; else it is the image's file name, where all have
    different ones; else its number.

    Raises:
        DataError: it is damaged, has no column of images, or pyarrow is not installed.
    """
    if is_remote(root):
        raise DataError(
            f"{root}: a saved Hugging Face data set found elsewhere, expected it on a disk: copy it"
        )
    try:
        state = json.loads((Path(root) / STATE).read_text())
        info = json.loads((Path(root) / INFO).read_text())
        names = [str(each["filename"]) for each in state["_data_files"]]
        columns = _columns_of(info["features"], root, named)
        if split is None and "split" in info["features"]:
            _require_one_split(root, names, info["features"]["split"].get("names"))
        if state.get("_indices_files"):
            raise DataError(f"{root}: rows are chosen by an index file; save_to_disk it again")
        listed = [sample for name in names for sample in _list_file(root, name, columns)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{root}: incomplete data set ({error}), expected what datasets' save_to_disk writes; "
            "save it again"
        ) from error
    files = {key for key, _ in listed if key}
    by_name = bool(columns.key) or len(files) == len(listed)
    return SampleTable.of(
        Sample(
            key if by_name else f"{number:09d}",
            sample.label,
            sample.place,
            sample.suffix,
            sample.offset,
            sample.size,
            False,
            sample.name,
        )
        for number, (key, sample) in enumerate(listed)
    )


def _columns_of(features: Any, root: str, named: Columns) -> _Columns:
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    if named.path:
        images = [name for name in images if name == named.path]
    if len(images) != 1:
        raise DataError(
            f"{root}: {len(images)} columns of images found ({', '.join(features)}), expected one; "
            "--path-column chooses"
        )
    key = next((name for name in KEY_COLUMNS if name in features), None)
    label = next(iter(named.label_of(list(features), root)), None)
    classes = features[label].get("names") if label else None
    return _Columns(images[0], key, label, classes)


def _require_one_split(root: str, names: Sequence[str], classes: Sequence[str] | None) -> None:
    """Saved alone, a data set is one split, whatever a column of it says."""
    found: set[Any] = set()
    for name in names:
        found |= {*_from_file(root, name, lambda batch, _: batch.column("split").to_pylist())}
    if len(found) > 1:
        splits = sorted(str(classes[each] if classes else each) for each in found)
        raise DataError(
            f"{root}: column split holds {', '.join(splits[:4])}, expected one split; save each "
            "in a folder of its name: dataset.filter(lambda row: row['split'] == 'train')"
            f".save_to_disk('{root}/train')"
        )


def _list_file(root: str, name: str, columns: _Columns) -> Iterator[tuple[str, Sample]]:
    """Key, or "" for none, and the sample, of each row of one Arrow file."""
    path = f"{root}/{name}"
    return _from_file(root, name, lambda batch, content: _list_batch(path, batch, content, columns))


def _from_file(
    root: str, name: str, read: Callable[[Any, Any], Iterable[Value]]
) -> Iterator[Value]:
    """What `read` gives of each record batch, and the content of the file, of one Arrow file."""
    with optional("arrow", f"{root}: a Hugging Face data set, which"):
        import pyarrow
    path = f"{root}/{name}"
    if "/" in name or name.startswith("."):
        raise DataError(f"{root}: {name!r} found as a data file, expected a name in that folder")
    try:
        with pyarrow.memory_map(path) as mapped:
            content = mapped.read_buffer()
            for batch in pyarrow.ipc.open_stream(content):
                batch.validate(full=True)  # or hostile offsets would end the interpreter
                yield from read(batch, content)
    except (pyarrow.ArrowException, UnicodeDecodeError, SystemError) as error:
        raise DataError(f"{path}: incomplete Arrow file ({error}); save it again") from error


def _list_batch(
    path: str, batch: Any, content: Any, columns: _Columns
) -> Iterator[tuple[str, Sample]]:
    root = path.rpartition("/")[0]
    images = batch.column(columns.image)
    starts, ends, null = _ranges(images.field("bytes"), content.address)
    if (~null & ((starts < 0) | (ends > content.size))).any():
        raise DataError(f"{path}: compressed, expected plain Arrow; save it with datasets again")
    names = images.field("path").to_pylist()
    keys = batch.column(columns.key).to_pylist() if columns.key else names
    labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(names)
    for row, name in enumerate(names):
        key = "" if keys[row] is None else str(keys[row])
        if not columns.key:
            key = key.rpartition("/")[2].rpartition(".")[0]
        label = _label_of(labels[row], columns.classes, path)
        if not null[row]:
            start, end = int(starts[row]), int(ends[row])
            yield key, Sample(key, label, path, offset=start, size=end - start)
        elif name:
            place = "" if str(name).startswith("/") or is_remote(str(name)) else root
            yield key, Sample(key, label, place, name=str(name))
        else:
            raise DataError(f"{path}: row {row} has neither bytes nor a path, expected an image")


def _label_of(label: Any, classes: Sequence[str] | None, path: str) -> str | int | None:
    if label is None or isinstance(label, str):
        return label
    if not isinstance(label, int) or (classes is not None and label >= len(classes)):
        raise DataError(
            f"{path}: label {label!r} found, expected a name or a number"
            + (f" below {len(classes)}" if classes else "")
        )
    if label < 0:
        return None
    return str(classes[label]) if classes else label


def _ranges(
    binary: Any, base: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where each value's bytes begin and end in the file, and which values are null."""
    import pyarrow

    wide = pyarrow.types.is_large_binary(binary.type)
    if not (wide or pyarrow.types.is_binary(binary.type)):
        raise DataError(f"images are kept as {binary.type}, expected binary; save them again")
    _, offsets, values = binary.buffers()
    at = np.frombuffer(offsets, np.int64 if wide else np.int32).astype(np.int64)
    at = at[binary.offset : binary.offset + len(binary) + 1]
    null = np.array(binary.is_null().to_pylist(), np.bool_)
    first = values.address - base if values is not None else 0
    return first + at[:-1], first + at[1:], null
