"""Frames of clips: the right ones, of any container and rate; and what is no whole clip."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
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


def test_videos_of_a_phone_are_set_upright(tmp_path: Path) -> None:
    corner = greys(1)[0]
    corner.paste((255, 255, 255), (0, 0, 16, 16))
    path = write_video(tmp_path / "clip.mp4", [corner] * 10)
    content = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(upright, content.index(b"tkhd"))
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    (frame,) = read_clip(Sample(key="x", label=None, place=str(tmp_path), name="clip.mp4"), [0.5])
    assert frame.size == (48, 64)
    assert [frame.getpixel(at)[0] > 128 for at in ((4, 4), (43, 4), (4, 59), (43, 59))] == [  # type: ignore[index]
        *(False, True, False, False)
    ]


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
