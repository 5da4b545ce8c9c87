"""Clips: which frames of a video, or of a folder of frames, stand at given parts of its time.

PyAV decodes, which the extra `video` installs. Bytes may be hostile: only containers that hold
their frames themselves are opened, and decoding ends at a bound. Times are those of the frames, so
a variable rate does no harm.
"""

import io
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from PIL import Image

from distill.data.formats.folders import split_image_name
from distill.data.formats.samples import VIDEO_SUFFIXES, Sample, SampleTable
from distill.data.images import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    decode_image,
    out_of_memory,
    read_bytes,
)
from distill.errors import DataError, first_line, optional
from distill.storage.locations import place_of

MAX_CLIP_BYTES = 2**30
MAX_PACKETS = 1_000_000
WHOLE = 0.95  # of the time that a file says it lasts
MAX_DECODED_PIXELS = 10**10  # on the way to the frames of one clip: 80 s of full HD
# What may be opened; FFmpeg's playlists, image sequences and devices would open other files.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif"
DIGITS = re.compile(r"(\d+)")


def require_decoder(samples: SampleTable) -> None:
    """Where one of those clips is a video, that PyAV is there.

    Raises:
        ConfigError: it is not installed.
    """
    if any(map(_is_video, samples)):
        with optional("video", "decoding videos"):
            import av  # noqa: F401


def read_clip(sample: Sample, at: Sequence[float]) -> list[Image.Image]:
    """The frames that are shown at those parts [0, 1) of its time, RGB, upright.

    Raises:
        DataError: it cannot be read whole, or holds no moving picture. The message is the reason:
        what kind of damage, a colon, and the rest.
        DataUnavailableError: a disk, the network or this machine is in trouble.
    """
    if not _is_video(sample):
        return _of_folder(sample.path.rstrip("/"), at)
    content = read_bytes(sample, at_most=MAX_CLIP_BYTES)
    try:
        return _of_video(content, at)
    except DataError:
        raise
    except MemoryError as error:
        raise out_of_memory("a video") from error
    except Exception as error:  # decoders raise whatever hostile bytes provoke
        reason = getattr(error, "strerror", None) or first_line(error)  # FFmpeg's own words
        raise DataError(f"undecodable video: {reason}") from error


def _is_video(sample: Sample) -> bool:
    return sample.path.lower().endswith(VIDEO_SUFFIXES)


def _of_folder(folder: str, at: Sequence[float]) -> list[Image.Image]:
    place = place_of(folder)
    if place.kind(folder) != "folder":
        raise DataError("cannot be read: no folder of frames, and no video by its suffix")
    names = [name for name in place.entries(folder).files if split_image_name(name)]
    names.sort(key=lambda name: [int(p) if p.isdecimal() else p for p in DIGITS.split(name)])
    _require_moving(len(names))
    chosen = [names[int(share * len(names))] for share in at]
    pictures = {
        name: decode_image(place.read(f"{folder}/{name}", 0, -1, at_most=MAX_IMAGE_BYTES))
        for name in dict.fromkeys(chosen)
    }
    return [pictures[name] for name in chosen]


def _of_video(content: bytes, at: Sequence[float]) -> list[Image.Image]:
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    with av.open(io.BytesIO(content), options=options, metadata_errors="replace") as container:
        cover = av.stream.Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & cover]
        if not streams:
            raise DataError("no moving picture: no stream of video found")
        stream = streams[0]
        if stream.codec_context is None:
            raise DataError("undecodable video: of an unknown codec")
        stream.codec_context.thread_count = 1  # processes decode side by side
        stream.codec_context.options = {"err_detect": "explode"}  # nothing is made up for damage
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_IMAGE_PIXELS:
            raise DataError(
                f"too many pixels: {width}×{height} found, expected at most {MAX_IMAGE_PIXELS}"
            )
        times, keys = _times(container, stream)
        gap = median(later - earlier for earlier, later in pairwise(times))
        length = times[-1] - times[0] + gap
        shown = [times[bisect_right(times, times[0] + share * length) - 1] for share in at]
        pictures = _decoded(container, stream, keys, sorted({*shown}))
        return [pictures[time] for time in shown]


def _times(container: Any, stream: Any) -> tuple[list[int], list[int]]:
    """When each frame is shown, in the stream's own units, ascending; and when the key frames."""
    times: list[int] = []
    keys: list[int] = []
    ended = 0.0  # seconds, of all streams
    for packet in container.demux():
        if packet.pts is None or not packet.size or packet.is_discard:
            continue
        ended = max(ended, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index:
            continue
        if packet.is_corrupt or len(times) == MAX_PACKETS:
            raise DataError(f"undecodable video: damaged after {len(times)} frames")
        times.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
    if len(times) < stream.frames:
        raise DataError(f"cut off: {len(times)} of {stream.frames} frames found")
    _require_moving(len(times))
    start, length = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
    if ended - start < WHOLE * length:
        raise DataError(f"cut off: {ended - start:.1f} s of {length:.1f} s found")
    return sorted(times), sorted(keys)


def _decoded(
    container: Any, stream: Any, keys: Sequence[int], wanted: Sequence[int]
) -> dict[int, Image.Image]:
    """The frames of those times, ascending; each is looked for from the key frame before it."""
    found: dict[int, Image.Image] = {}
    frames: Iterator[Any] = iter(())
    frame, pixels = None, 0
    for time in wanted:
        key = keys[max(0, bisect_right(keys, time) - 1)] if keys else None
        if frame is None or (key is not None and frame.pts < key):
            container.seek(key or 0, stream=stream)
            frames, frame = container.decode(stream), None
        while frame is None or frame.pts < time:
            frame = next(frames, None)
            if frame is None:
                raise DataError("undecodable video: it ends before its last frames")
            pixels += frame.width * frame.height
            if frame.pts is None or pixels > MAX_DECODED_PIXELS:
                raise DataError(
                    f"too long to decode: {pixels:.0e} pixels before a frame was found, expected "
                    "key frames in between"
                )
        picture = frame.to_image()
        found[time] = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
    return found


def _require_moving(frames: int) -> None:
    if frames < 2:
        raise DataError(f"no moving picture: {frames} frames found, expected two at least")
