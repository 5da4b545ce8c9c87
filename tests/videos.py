"""Small videos: the demo's figures, moving; and damaged or strange ones."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from distill.data.rendered.plane_figures import render_figure

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
CODECS |= {".ts": "libx264", ".mpg": "mpeg2video", ".mov": "libx265", ".flv": "flv"}
WNIDS = ("n13878634", "n13873502", "n13882008")  # square, circle, star


def write_video(
    path: Path,
    frames: Sequence[Image.Image],
    *,
    shown_ms: Sequence[int] = (),
    gop: int = 12,
    codec: str = "",
    **options: str,
) -> Path:
    """shown_ms: when each frame is; 25 a second without. options: of the codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or CODECS[path.suffix], rate=25, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", gop, 4_000_000
        if shown_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            if shown_ms:
                frame.pts, frame.time_base = shown_ms[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def greys(count: int, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    """Frame i has the shade 8i."""
    return [Image.new("RGB", size, (8 * i,) * 3) for i in range(count)]


def moving(wnid: str, seed: int, count: int = 16, side: int = 48) -> list[Image.Image]:
    """A figure that moves across the picture."""
    random = np.random.default_rng(seed)
    figure = render_figure(wnid, side // 2, random)
    across, down = random.uniform(0.2, 1.0), random.uniform(0.0, 1.0)
    frames = []
    for i in range(count):
        frame = Image.new("RGB", (side, side), figure.getpixel((0, 0)))
        along = i / (count - 1) * (side - figure.width)
        frame.paste(figure, (round(along * across), round(along * down)))
        frames.append(frame)
    return frames


def write_clips(root: Path, each: int = 6) -> Path:
    """train and val of three classes, in several containers; the last as folders of frames."""
    for split, count in (("train", each), ("val", 2)):
        for wnid in WNIDS:
            for i in range(count):
                frames = moving(wnid, seed=10 * i + (split == "val"))
                clip = root / split / wnid / f"clip{i}"
                if i == count - 1:
                    clip.mkdir(parents=True)
                    for number, frame in enumerate(frames):
                        frame.save(clip / f"frame{number}.png")
                else:
                    write_video(clip.with_suffix(list(CODECS)[i % 4]), frames)
    return root
