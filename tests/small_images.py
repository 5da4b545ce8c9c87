"""Small images as folders of classes and as tars."""

import io
import tarfile
from pathlib import Path

from PIL import Image

SQUARE, CIRCLE = "n13878634", "n13873502"


def jpeg(shade: int = 0, side: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(root: Path, wnids: tuple[str, ...] = (SQUARE, CIRCLE), images: int = 3) -> Path:
    for wnid in wnids:
        (root / wnid).mkdir(parents=True)
        for i in range(images):
            (root / wnid / f"{wnid}_{i}.JPEG").write_bytes(jpeg(i))
    return root
