"""Small raw releases of ImageNet-21K in each of the forms that are about."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Images of each class; the last is below the least number in the tests.
CLASSES = {"n00000001": 9, "n00000002": 7, "n00000003": 6, "n00000004": 3}


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG of noise over a gradient."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def release(more: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Content of each file, by class/name; names are not in order."""
    files = {
        f"{wnid}/{wnid}_{i}.JPEG": photo(int(wnid[1:]) * 100 + i)
        for wnid, count in CLASSES.items()
        for i in reversed(range(count))
    }
    return files | (more or {})


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def class_tars(files: dict[str, bytes]) -> dict[str, bytes]:
    """The content of n00000001.tar and so on."""
    classes = dict.fromkeys(name.partition("/")[0] for name in files)
    return {
        f"{wnid}.tar": tar_of(
            {n.partition("/")[2]: c for n, c in files.items() if n.startswith(f"{wnid}/")}
        )
        for wnid in classes
    }


def write_release(folder: Path, form: str, files: dict[str, bytes]) -> Path:
    """fall11: a tar of tars. winter21: a tar of directories. tars, tree: the same unpacked."""
    if form in ("fall11", "winter21"):
        path = folder / f"{form}_whole.tar"
        inside = (
            class_tars(files)
            if form == "fall11"
            else {f"winter21/{n}": c for n, c in files.items()}
        )
        path.write_bytes(tar_of(inside))
        return path
    root = folder / form
    for name, content in (class_tars(files) if form == "tars" else files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root
