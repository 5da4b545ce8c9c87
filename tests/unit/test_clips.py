"""Frames of clips: the right ones, of any container and rate; and what is no whole clip."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from videos import greys, write_video

from distill.data.clips import read_clip
from distill.data.formats.samples import FOLDER, Sample
from distill.data.view_policy import ViewPolicy
from distill.data.views import draw_view
from distill.errors import ConfigError, DataError

COUNT = 30
SOUND = "no moving picture: no stream of video found"


def shades(path: Path, *at: float) -> list[int]:
    """Which of `greys` is shown."""
    frames = read_clip(Sample(key="x", label=None, place=str(path.parent), name=path.name), at)
    return [round(float(np.asarray(frame).mean()) / 8) for frame in frames]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
@pytest.mark.parametrize("gop", [1, 12, 100])
def test_frames_are_those_of_their_time(suffix: str, gop: int, tmp_path: Path) -> None:
    """With frames that are stored in another order, and key frames anywhere."""
    path = write_video(tmp_path / f"clip{suffix}", greys(COUNT), gop=gop)
    every = [(i + 0.5) / COUNT for i in range(COUNT)]
    assert shades(path, *every) == list(range(COUNT))
    assert shades(path, 0.99, 0.0, 0.5) == [29, 0, 15]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".avi", "mpeg4", {"bf": "2"}),
        (".avi", "libx264", {"bf": "2"}),
        (".ts", "libx264", {"bf": "2"}),
        (".ts", "mpeg2video", {}),
        (".mpg", "mpeg2video", {"bf": "2"}),
        (".mp4", "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=15:scenecut=0"}),
        (".mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=15"}),
        (".mov", "libx265", {"x265-params": "log-level=none:keyint=15"}),
        (".flv", "flv", {}),
        (".wmv", "libx264", {}),
    ],
)
def test_frames_are_those_that_decoders_show(
    suffix: str, codec: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Whichever others are asked for: frames in another order, key frames that are none."""
    frames = [_stripes(i) for i in range(60)]
    path = write_video(tmp_path / f"clip{suffix}", frames, codec=codec, gop=6, **options)
    with av.open(str(path)) as container:
        shown = [frame.to_image() for frame in container.decode(video=0)]
    at = [(i + 0.5) / len(shown) for i in range(len(shown))]
    sample = Sample(key="x", label=None, place=str(path.parent), name=path.name)
    together = read_clip(sample, at)
    found = [_nearest(each, shown) for each in together]
    assert max(abs(i - each) for i, each in enumerate(found)) <= (suffix == ".mpg")
    for i in (7, 31, 52):
        (alone,) = read_clip(sample, [at[i]])
        assert alone.tobytes() == together[i].tobytes()


def test_trimmed_videos_begin_where_they_were_cut(tmp_path: Path) -> None:
    """What `ffmpeg -ss … -c copy` leaves out is still in the file."""
    whole = write_video(tmp_path / "whole.mp4", greys(COUNT), gop=30)
    with av.open(str(whole)) as old, av.open(str(tmp_path / "cut.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                before = round(10 / 25 / packet.time_base)
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - before,
                    packet.dts - before,
                    stream,
                )
                new.mux(packet)
    assert shades(tmp_path / "cut.mp4", 0.0, 0.5, 0.99) == pytest.approx([10, 20, 29], abs=1)


def test_a_variable_rate_is_shown_by_time(tmp_path: Path) -> None:
    shown = [40 * i for i in range(15)] + [600 + 400 * i for i in range(15)]
    path = write_video(tmp_path / "clip.mkv", greys(COUNT), shown_ms=shown)
    of_time = [max(i for i, ms in enumerate(shown) if ms <= at * 6600) for at in (0.05, 0.5, 0.9)]
    assert shades(path, 0.05, 0.5, 0.9) == pytest.approx(of_time, abs=1)
    assert of_time[1] > 20


def test_folders_of_frames_are_counted_as_people_count(tmp_path: Path) -> None:
    for i, frame in enumerate(greys(12)):
        frame.save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".hidden.png").write_bytes(b"no frame")
    sample = Sample(key=tmp_path.name, label=None, place=str(tmp_path.parent), suffix=FOLDER)
    frames = read_clip(sample, [(i + 0.5) / 12 for i in range(12)])
    assert [round(float(np.asarray(frame).mean()) / 8) for frame in frames] == list(range(12))


@pytest.mark.parametrize(
    ("matrix", "size", "lands"),
    [
        ((0, 1, -1, 0), (48, 64), (43, 4)),
        ((-1, 0, 0, -1), (64, 48), (59, 43)),
        ((0, -1, 1, 0), (48, 64), (4, 59)),
        ((-1, 0, 0, 1), (64, 48), (59, 4)),
        ((1, 0, 0, -1), (64, 48), (4, 43)),
        ((0, 1, 1, 0), (48, 64), (4, 4)),
    ],
)
def test_videos_of_a_phone_are_set_upright(
    matrix: tuple[int, ...], size: tuple[int, int], lands: tuple[int, int], tmp_path: Path
) -> None:
    """A white corner, at the top left in the file."""
    corner = greys(1)[0]
    corner.paste((255, 255, 255), (0, 0, 16, 16))
    path = write_video(tmp_path / "clip.mp4", [corner] * 10)
    content = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(upright, content.index(b"tkhd"))
    a, b, c, d = (value << 16 for value in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    sample = Sample(key="x", label=None, place=str(tmp_path), name="clip.mp4")
    (frame,) = read_clip(sample, [0.5])
    assert frame.size == size
    places = [(x, y) for x in (4, size[0] - 5) for y in (4, size[1] - 5)]
    assert [place for place in places if np.asarray(frame)[place[1], place[0], 0] > 128] == [lands]
    content[at : at + 36] = struct.pack(">9i", 50000, 30000, 0, -30000, 50000, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(DataError, match="turned by something else than quarters"):
        read_clip(sample, [0.5])


def test_what_is_no_whole_clip_says_why(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv", ".webm", ".avi"):
        whole = write_video(tmp_path / f"whole{suffix}", greys(COUNT)).read_bytes()
        for share in (0.0, 0.3, 0.6, 0.9):
            cut = tmp_path / f"cut{suffix}"
            cut.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(DataError, match=r"^(undecodable video|cut off|no moving picture):"):
                shades(cut, 0.1)
    _write_sound(tmp_path / "sound.mp4", cover=False)
    _write_sound(tmp_path / "cover.mp4", cover=True)
    write_video(tmp_path / "one.mp4", greys(1))
    greys(1)[0].save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.mp4")
    for name, reason in (
        ("sound.mp4", SOUND),
        ("cover.mp4", SOUND),
        ("one.mp4", "no moving picture: 1 frames found"),
        ("picture.mp4", "undecodable video: "),
        ("absent.mp4", "cannot be read: "),
        ("absent", "cannot be read: no folder of frames"),
    ):
        with pytest.raises(DataError, match=reason):
            shades(tmp_path / name, 0.5)


def test_a_video_opens_no_other_file(tmp_path: Path) -> None:
    """As playlists do, which FFmpeg would follow."""
    other = write_video(tmp_path / "other.mp4", greys(COUNT))
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
    ):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(DataError, match="undecodable video: "):
            shades(tmp_path / "list.mp4", 0.5)


def test_damaged_frames_are_not_made_up(tmp_path: Path, random: np.random.Generator) -> None:
    path = write_video(tmp_path / "clip.mp4", [greys(8, (128, 128))[i % 8] for i in range(60)])
    whole, before = path.read_bytes(), shades(path, 0.1, 0.5, 0.9)
    ends = []
    for _ in range(40):
        content = bytearray(whole)
        for at in random.integers(len(whole) // 10, len(whole) * 9 // 10, 3):
            content[at] ^= int(random.integers(1, 256))
        path.write_bytes(content)
        try:
            ends.append(shades(path, 0.1, 0.5, 0.9) == before)
        except DataError:
            ends.append(True)
    assert sum(ends) >= 0.95 * len(ends)


def test_frames_are_drawn_from_equal_parts() -> None:
    sample_id = np.array([7, 9], np.uint64)
    plain = draw_view(ViewPolicy(name="plain", frames=4), sample_id, 0)
    assert plain.frames == (0.125, 0.375, 0.625, 0.875)
    policy = ViewPolicy(frames=4, seed=3)
    drawn = [draw_view(policy, sample_id, view) for view in range(50)]
    assert len({params.frames for params in drawn}) == 50
    for params in drawn:
        assert [int(4 * share) for share in params.frames] == [0, 1, 2, 3]
        assert params == draw_view(policy, sample_id, drawn.index(params))
    still = draw_view(ViewPolicy(seed=3), sample_id, 0)
    assert (still.flip, still.operations) == (drawn[0].flip, drawn[0].operations)
    assert ViewPolicy.from_json(policy.to_json()) == policy
    assert "frames" not in ViewPolicy().to_json()
    with pytest.raises(ConfigError, match="frames 257 found, expected 0 to 256"):
        ViewPolicy(frames=257)


def test_large_frames_are_reduced_and_huge_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", greys(4, (2048, 512)))
    sample = Sample(key="x", label=None, place=str(tmp_path), name="clip.mp4")
    assert read_clip(sample, [0.5])[0].size == (1024, 256)
    for bound, found in (
        ("MAX_FRAME_PIXELS", "too many pixels"),
        ("MAX_DECODED_PIXELS", "too long"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"distill.data.clips.{bound}", 2048 * 512 - 1)
            with pytest.raises(DataError, match=found):
                read_clip(sample, [0.5])
    assert path.exists()


def _stripes(i: int) -> Image.Image:
    """Noise that moves, so that each frame is unlike the others."""
    noise = np.random.default_rng(1).integers(0, 100, (48, 64, 3))
    return Image.fromarray((np.roll(noise, 5 * i, 1) + 2 * i).astype(np.uint8))


def _nearest(frame: Image.Image, shown: list[Image.Image]) -> int:
    apart = [np.abs(np.asarray(frame, float) - np.asarray(each, float)).mean() for each in shown]
    return int(np.argmin(apart))


def _write_sound(path: Path, *, cover: bool) -> None:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if picture:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 44100
        for i in range(20):
            samples.pts = i * 1024
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
        if picture:
            image = av.VideoFrame.from_image(greys(1)[0]).reformat(format="yuvj420p")
            container.mux(picture.encode(image))
            container.mux(picture.encode())
