"""Clips: which frames of a video, or of a folder of frames, stand at given parts of its time.

PyAV decodes, which the extra `video` installs. Bytes may be hostile: only containers that hold
their frames themselves are opened, and decoding ends at a bound. Times are those of the frames, so
a variable rate does no harm.
"""

import io
import re
import struct
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

from PIL import Image
from PIL.Image import Transpose

from distill.data.formats.folders import split_image_name
from distill.data.formats.samples import VIDEO_SUFFIXES, Sample, SampleTable
from distill.data.images import (
    MAX_IMAGE_BYTES,
    decode_image,
    out_of_memory,
    read_bytes,
)
from distill.errors import DataError, DataUnavailableError, first_line, optional
from distill.storage.locations import place_of

MAX_CLIP_BYTES = 2**30
MAX_PACKETS = 1_000_000
MAX_FRAME_PIXELS = 36_000_000  # 8K
SHORT, SHORT_S = 0.05, 0.1  # by which a file may end before it says it does: a share, or seconds
MAX_DECODED_PIXELS = 10**10  # of one clip: 160 s of full HD, 64 minutes of 340 × 256
MOST_SIDE = 1024  # of a frame that is kept
# What may be opened; FFmpeg's playlists, image sequences and devices would open other files.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,gif"
DIGITS = re.compile(r"(\d+)")
# What shows a picture as a display matrix says: where its x axis leads to, and its y axis.
UPRIGHT: dict[tuple[float, ...], Transpose | None] = {
    (1, 0, 0, 1): None,
    (0, 1, -1, 0): Transpose.ROTATE_270,
    (-1, 0, 0, -1): Transpose.ROTATE_180,
    (0, -1, 1, 0): Transpose.ROTATE_90,
    (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Transpose.TRANSPOSE,
    (0, -1, -1, 0): Transpose.TRANSVERSE,
}


def require_decoder(samples: SampleTable) -> None:
    """Where one of those clips is a video, that PyAV is there.

    Raises:
        ConfigError: it is not installed.
    """
    if any(map(is_video, samples)):
        with optional("video", "decoding videos"):
            import av  # noqa: F401


def read_clip(sample: Sample, at: Sequence[float], *, whole: bool = False) -> list[Image.Image]:
    """The frames that are shown at those parts [0, 1) of its time, RGB, upright.

    whole: decode all frames, also of a folder; those of a video are, up to the last one shown.

    Raises:
        DataError: it cannot be read whole, or holds no moving picture. The message is the reason:
        what kind of damage, a colon, and the rest.
        DataUnavailableError: a disk, the network or this machine is in trouble.
    """
    if not is_video(sample):
        return _of_folder(sample.path.rstrip("/"), at, whole=whole)
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


def is_video(sample: Sample) -> bool:
    """Whether it is one by its suffix."""
    return sample.path.lower().endswith(VIDEO_SUFFIXES)


def _of_folder(folder: str, at: Sequence[float], *, whole: bool) -> list[Image.Image]:
    place = place_of(folder)
    if place.kind(folder) != "folder":
        raise DataError("cannot be read: no folder of frames, and no video by its suffix")
    names = [name for name in place.entries(folder).files if split_image_name(name)]
    names.sort(key=lambda name: [int(p) if p.isdecimal() else p for p in DIGITS.split(name)])
    _require_moving(len(names))
    chosen = [names[int(share * len(names))] for share in at]
    pictures: dict[str, Image.Image] = {}
    for name in names if whole else dict.fromkeys(chosen):
        content = place.read(f"{folder}/{name}", 0, -1, at_most=MAX_IMAGE_BYTES)
        try:
            picture = _reduced(decode_image(content))
        except DataUnavailableError:
            raise
        except DataError as error:
            raise DataError(f"{error}, frame {name}") from error
        if name in chosen:
            pictures[name] = picture
    return [pictures[name] for name in chosen]


def _of_video(content: bytes, at: Sequence[float]) -> list[Image.Image]:
    """From the first frame on: decoders disagree about what a seek leads to, and about times."""
    expected = _times_of_packets(content)
    wanted = _shown(expected, at)
    times, pictures = _decoded(content, {*wanted})
    if times != expected:  # what is shown is what counts
        wanted = _shown(times, at)
        _, pictures = _decoded(content, {*wanted})
    return [pictures[i] for i in wanted]


def _shown(times: Sequence[int], at: Sequence[float]) -> list[int]:
    """Which frames are shown at those parts of the time; times: when each begins, ascending."""
    _require_moving(len(times))
    length = times[-1] - times[0] + median(later - earlier for earlier, later in pairwise(times))
    return [bisect_right(times, times[0] + share * length) - 1 for share in at]


@contextmanager
def _opened(content: bytes) -> Iterator[tuple[Any, Any]]:
    """The container, and its stream of moving pictures."""
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    with av.open(io.BytesIO(content), options=options, metadata_errors="replace") as container:
        cover = av.stream.Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & cover]
        if not streams:
            raise DataError("no moving picture: no stream of video found")
        if streams[0].codec_context is None:
            raise DataError("undecodable video: of an unknown codec")
        yield container, streams[0]


def _times_of_packets(content: bytes) -> list[int]:
    """When frames should be shown, in the stream's own units; without that, by number."""
    times: list[int | None] = []
    found, discarded, ended = 0, 0, 0.0  # frames; seconds, of all streams
    with _opened(content) as (container, stream):
        for packet in container.demux():
            if packet.dts is None and packet.pts is None:  # the end
                continue
            if packet.pts is not None:
                last = (packet.pts + (packet.duration or 0)) * packet.time_base
                ended = max(ended, float(last))
            if packet.stream_index != stream.index:
                continue
            found += 1
            if packet.is_corrupt or found > MAX_PACKETS:
                raise DataError(f"undecodable video: damaged after {found - 1} frames")
            discarded += packet.is_discard
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
        # An edit list leaves frames out; AVI counts those that were never written.
        if found < stream.frames and not discarded and "mp4" in container.format.name:
            raise DataError(f"cut off: {found} of {stream.frames} frames found")
        length = (container.duration or 0) / 1e6
    if ended < length - max(SHORT * length, SHORT_S):
        raise DataError(f"cut off: {ended:.1f} s of {length:.1f} s found")
    return _known(sorted(time for time in times if time is not None), len(times))


def _known(times: list[int], frames: int) -> list[int]:
    """Times that ascend and that all frames have; else the frames' numbers."""
    ascending = all(earlier <= later for earlier, later in pairwise(times))
    return times if ascending and len(times) == frames else [*range(frames)]


def _decoded(content: bytes, wanted: Container[int]) -> tuple[list[int], dict[int, Image.Image]]:
    """When each frame is shown, and those that are wanted, by number."""
    times: list[int | None] = []
    pictures: dict[int, Image.Image] = {}
    pixels = 0
    with _opened(content) as (container, stream):
        stream.codec_context.thread_count = 1  # processes decode side by side
        stream.codec_context.options = {"err_detect": "explode"}  # nothing is made up for damage
        for number, frame in enumerate(container.decode(stream)):
            size = frame.width * frame.height
            pixels += size
            if size > MAX_FRAME_PIXELS:
                raise DataError(
                    f"too many pixels: {frame.width}×{frame.height} found, expected at most "
                    f"{MAX_FRAME_PIXELS} in a frame"
                )
            if pixels > MAX_DECODED_PIXELS:
                raise DataError(
                    f"too long: more than {MAX_DECODED_PIXELS:.0e} pixels found, expected a clip; "
                    "cut it into shorter ones"
                )
            if frame.is_corrupt:
                raise DataError(f"undecodable video: damaged after {number} frames")
            times.append(frame.pts)
            if number in wanted:
                pictures[number] = _upright(frame)
    return _known([time for time in times if time is not None], len(times)), pictures


def _upright(frame: Any) -> Image.Image:
    """A frame as it is to be shown."""
    from av.video.reformatter import Interpolation, VideoReformatter

    # Bit by bit the same on every processor; and without threads: garbage that has some would hang
    # a process that is forked later, as those that decode are.
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    rgb = VideoReformatter().reformat(frame, format="rgb24", interpolation=exact, threads=1)
    picture = _reduced(Image.fromarray(rgb.to_ndarray()))
    turns = [bytes(each) for each in frame.side_data if each.type.name == "DISPLAYMATRIX"]
    if not turns:
        return picture
    across, down = struct.unpack("=2i", turns[0][:8]), struct.unpack("=2i", turns[0][12:20])
    turn = tuple(value / 2**16 for value in (*across, *down))
    if turn not in UPRIGHT:
        raise DataError("undecodable video: turned by something else than quarters")
    how = UPRIGHT[turn]
    return picture if how is None else picture.transpose(how)


def _reduced(picture: Image.Image) -> Image.Image:
    """The picture with at most `MOST_SIDE` pixels a side: many are held at once."""
    picture.thumbnail((MOST_SIDE, MOST_SIDE), Image.Resampling.BILINEAR)
    return picture


def _require_moving(frames: int) -> None:
    if frames < 2:
        raise DataError(f"no moving picture: {frames} frames found, expected two at least")
