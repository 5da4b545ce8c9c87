"""Labelled images on disk: ImageFolder directories and WebDataset tars behind one `ImageSource`.

Owns keys, labels, random access to encoded bytes and decoding. Does not resize or augment.
A sample's key is its name without split, shard or extension, so moving data does not change it.
"""

import errno
import io
import os
import re
import stat
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from distill.errors import DataError, DataUnavailableError, first_line
from distill.hierarchy import SemanticHierarchy
from distill.sample_id import SampleIds, ascending, sample_ids
from distill.samples import Sample, SampleTable

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_IMAGE_BYTES = 64 * 2**20
MAX_IMAGE_PIXELS = 80_000_000
MAX_LABEL_BYTES = 256
# Errors that belong to one file and stay with it; any other is trouble that passes.
DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO}
# The decoders that may see the bytes: Pillow's others run programs, or are seldom looked after.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SPLITS = ("train", "val", "test")
OUTSIDE = -2  # a label that is not of the label set
WNID_IN_NAME = re.compile(r"^(n\d{8})_")


# What a camera wrote into EXIF's orientation tag, and what sets the picture upright.
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class ImageSource:
    """The samples of one split, in ascending order of sample id."""

    location: str
    samples: SampleTable
    ids: SampleIds  # [n, 2], ascending

    def __len__(self) -> int:
        return len(self.samples)

    def limited(self, limit: int | None) -> "ImageSource":
        """The `limit` smallest ids: a fair and repeatable choice from the whole."""
        if limit is None or limit >= len(self):
            return self
        return ImageSource(self.location, self.samples[:limit], self.ids[:limit])

    def taken(self, rows: NDArray[np.int64]) -> "ImageSource":
        """Those rows, which must be ascending."""
        return ImageSource(self.location, self.samples.taken(rows), self.ids[rows])


def open_source(location: str | Path, split: str = "train") -> ImageSource:
    """Recognise what `location` holds and list one split of it.

    A tar; a folder of tars, of which those named after the split where any is; a folder of one
    folder a class, or of images without labels; or a folder that holds such a folder named after
    the split.

    Raises:
        DataError: nothing is there, nothing of a known form, or a key stands twice.
    """
    path = Path(location)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected images for --data")
    root = path / split if (path / split).is_dir() else path
    others = [other for other in SPLITS if (path / other).is_dir()]
    if root == path and others and not any(path.glob("*.tar")):
        raise DataError(
            f"{path}: no split {split} found, only {', '.join(others)}; expected a folder of that "
            "name: make one, or pass one of these folders"
        )
    try:
        tars = _tars_of(root, split if root == path else "")
        samples = SampleTable.of(_list_tars(tars) if tars else _list_folder(root))
        if not tars and not len(samples):
            samples = SampleTable.of(_list_files(root, Path(), None))
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be listed ({error.strerror}), expected readable "
            "folders and images; give this user the right to read them"
        ) from error
    if not len(samples):
        raise DataError(
            f"{root}: no images found; expected one folder a class with {' '.join(IMAGE_SUFFIXES)} "
            "files, or WebDataset tars of key.jpg with key.wnid or key.cls"
        )
    ids = sample_ids(s.key for s in samples)
    order = ascending(ids)
    ids = ids[order]
    twice = np.flatnonzero((ids[1:] == ids[:-1]).all(axis=1))
    if len(twice):
        key = samples[int(order[twice[0]])].key
        raise DataError(f"{root}: the key {key!r} stands twice; expected every sample's key once")
    return ImageSource(str(path), samples.taken(order), ids)


def has_split(location: str | Path, split: str) -> bool:
    """Whether there is a split of that name, apart from the others."""
    path = Path(location)
    return path.is_dir() and ((path / split).is_dir() or any(path.glob(f"{split}-*.tar")))


def label_indices(source: ImageSource, hierarchy: SemanticHierarchy) -> NDArray[np.int64]:
    """[n]: each sample's class index, -1 where it has none.

    A label that was only guessed from a file name and lies outside the label set counts as none.

    Raises:
        DataError: a label lies outside the label set.
    """
    samples = source.samples
    known = np.array([_class_of(label, hierarchy) for label in samples.labels], np.int64)
    labels: NDArray[np.int64] = known[samples.rows["label"]]
    outside = np.flatnonzero((labels == OUTSIDE) & ~samples.rows["guessed"])
    if len(outside):
        sample = samples[int(outside[0])]
        raise DataError(
            f"{source.location}: sample {sample.key!r} has label {sample.label!r}, expected a "
            f"synset or an index of label set {hierarchy.name} ({hierarchy.num_classes} classes); "
            "pass the --label-set that the data was tagged with"
        )
    return np.maximum(labels, -1)


def read_image(sample: Sample) -> Image.Image:
    """The decoded image, RGB, upright.

    Raises:
        DataError: the bytes are missing, too many, or not a whole image. The message is the reason:
        what kind of damage, a colon, and the rest.
        DataUnavailableError: a disk, a mount or this machine's memory is in trouble.
    """
    try:
        # Of a pipe that somebody named .jpg, opening would wait for ever.
        number = os.open(sample.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(number, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError("cannot be read: not a regular file")
            size = status.st_size if sample.size < 0 else sample.size
            if size > MAX_IMAGE_BYTES:
                raise DataError(f"too many bytes: {size} found, expected at most {MAX_IMAGE_BYTES}")
            file.seek(sample.offset)
            content = file.read(size)
    except OSError as error:
        if error.errno not in DAMAGE:
            raise DataUnavailableError(
                f"{sample.path}: cannot be read now ({error.strerror}), expected a disk and a "
                "machine in order; finished work is kept: mend it, and run the same command again"
            ) from error
        raise DataError(f"cannot be read: {error.strerror}") from error
    return decode_image(content)


def decode_image(
    content: bytes | memoryview,
    *,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_IMAGE_PIXELS,
) -> Image.Image:
    """`read_image` for bytes that are at hand. Of an animation, the first picture."""
    if not len(content):
        raise DataError("not an image: 0 bytes found")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, about size and broken EXIF
            image = Image.open(io.BytesIO(content), formats=formats)
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"too many pixels: {image.width}×{image.height} found, "
                    f"expected at most {max_pixels}"
                )
            return _upright(_in_rgb(image), _orientation(image))
    except DataError:
        raise
    except MemoryError as error:
        raise DataUnavailableError(
            "out of memory while decoding an image, expected room for it; lower --workers or "
            "--batch-size, then run the same command again"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"too many pixels: {first_line(error)}") from error
    except UnidentifiedImageError as error:
        known = f"of no known format ({', '.join(formats)})"
        raise DataError(f"not an image: {known}") from error
    except Exception as error:  # decoders raise whatever hostile bytes provoke
        raise DataError(f"not a whole image: {first_line(error)}") from error


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION_TAG) if image.info.get("exif") else None
    except Exception:  # a broken tag does not make the pixels worse
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _class_of(label: str | int | None, hierarchy: SemanticHierarchy) -> int:
    if label is None:
        return -1
    if isinstance(label, int):
        return label if 0 <= label < hierarchy.num_classes else OUTSIDE
    return hierarchy.index(label) if label in hierarchy else OUTSIDE


def _tars_of(root: Path, split: str) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix == ".tar" else []
    tars = sorted(root.glob("*.tar"))
    of_split = [tar for tar in tars if tar.name.startswith(f"{split}-")] if split else tars
    split_names = any(tar.name.startswith(f"{other}-") for tar in tars for other in SPLITS)
    return of_split if of_split or split_names else tars


def _list_folder(root: Path) -> Iterator[Sample]:
    if not root.is_dir():
        raise DataError(f"{root}: a file of unknown form; expected a folder or a .tar")
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        for found, folders, _ in os.walk(folder, onerror=_raise):
            folders.sort()
            yield from _list_files(root, Path(found).relative_to(root), folder.name)


def _list_files(root: Path, inside: Path, label: str | None) -> Iterator[Sample]:
    """The images of one folder."""
    for entry in sorted(os.scandir(root / inside), key=lambda entry: entry.name):
        stem, dot, suffix = entry.name.rpartition(".")
        image = (dot + suffix).lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
        if image and not entry.is_dir():
            yield Sample((inside / stem).as_posix(), label, str(root), dot + suffix)


def _raise(error: OSError) -> None:
    raise error


def _list_tars(paths: Sequence[Path]) -> Iterator[Sample]:
    for path in paths:
        try:
            with tarfile.open(path, "r:") as tar:
                yield from _list_tar(tar, str(path))
        except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
            raise DataError(
                f"{path}: not a whole uncompressed tar ({error}); copy it again"
            ) from error


def _list_tar(tar: tarfile.TarFile, path: str) -> Iterator[Sample]:
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str | int] = {}
    for member in tar:
        if not member.isreg():
            continue
        key, suffix = _split_key(member.name)
        if suffix in IMAGE_SUFFIXES:
            if key in images:
                raise DataError(f"{path}: the key {key!r} stands twice; expected one image a key")
            images[key] = member
        elif suffix in (".wnid", ".cls"):
            labels[key] = _read_label(tar, member, suffix, path)
    end = Path(path).stat().st_size
    for key, member in images.items():
        if member.offset_data + member.size > end:
            raise DataError(f"{path}: ends inside {member.name!r}; copy the tar again")
        guess = WNID_IN_NAME.match(PurePosixPath(key).name)
        label = labels.get(key, guess.group(1) if guess else None)
        guessed = key not in labels
        offset, size = member.offset_data, member.size
        yield Sample(key, label, path, offset=offset, size=size, guessed=guessed)


def _split_key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the base name."""
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), (dot + suffix).lower()


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, path: str) -> str | int:
    file = tar.extractfile(member)
    text = file.read(MAX_LABEL_BYTES).decode("utf-8", "replace").strip() if file else ""
    if suffix == ".wnid":
        return text
    if not text.isdecimal():
        raise DataError(f"{path}: {member.name!r} holds {text!r}, expected a class index")
    return int(text)
