import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from distill.data import loader
from distill.data.loader import ViewRequest, load_views
from distill.data.sample_ids import sample_ids
from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.data.views import (
    APPLY,
    OPERATIONS,
    ViewParams,
    draw_view,
    render_view,
    squish,
    view_proof,
)
from distill.errors import ConfigError, DataError

IDS = sample_ids([f"key{i}" for i in range(50)])


@pytest.fixture
def image(random: np.random.Generator) -> Image.Image:
    return Image.fromarray(random.integers(0, 256, (37, 53, 3), np.uint8))


def test_parameters_are_pinned() -> None:
    """A change here breaks the replay of every store that exists."""
    drawn = draw_view(ViewPolicy(), sample_ids(["n01440764_18"])[0], 1)
    assert drawn == ViewParams(
        flip=False,
        operations=(("translate_x", -0.40499999999999997), ("solarize", 0.9)),
        cutout=(0.04263993649289444, 0.40104224212191464, 0.5),
    )


def test_parameters_do_not_depend_on_order() -> None:
    policy = ViewPolicy(seed=3)
    forward = [draw_view(policy, i, v) for i in IDS for v in range(3)]
    backward = [draw_view(policy, i, v) for i in IDS[::-1] for v in (2, 1, 0)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(forward)


def test_another_seed_draws_other_views() -> None:
    assert draw_view(ViewPolicy(seed=0), IDS[0], 0) != draw_view(ViewPolicy(seed=1), IDS[0], 0)


def test_draws_are_spread_over_all_operations() -> None:
    drawn = [draw_view(ViewPolicy(), i, v) for i in IDS for v in range(20)]
    names = [name for params in drawn for name, _ in params.operations]
    assert {*names} == {*OPERATIONS} == {*APPLY}
    counts = [names.count(name) / len(names) * len(OPERATIONS) for name in OPERATIONS]
    assert min(counts) > 0.6
    assert max(counts) < 1.4
    assert 0.45 < np.mean([params.flip for params in drawn]) < 0.55


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_every_operation_gives_an_image_of_the_same_size(
    name: str, sign: float, image: Image.Image
) -> None:
    done = APPLY[name](image, sign * OPERATIONS[name])
    assert (done.size, done.mode) == (image.size, "RGB")


def test_plain_view_is_the_squish_resize_alone(image: Image.Image) -> None:
    params = draw_view(ViewPolicy(name="plain"), IDS[0], 0)
    pixels = render_view(image, params, (24, 16))
    expected = np.asarray(image.resize((16, 24), Image.Resampling.BILINEAR))
    assert params == ViewParams()
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_geometry_is_relative_to_the_size(image: Image.Image) -> None:
    params = ViewParams(flip=True, cutout=(0.25, 0.5, 0.5))
    for side in (32, 96):
        grey = (render_view(image, params, (side, side)) == 128).all(0)
        expected = torch.zeros(side, side, dtype=torch.bool)
        expected[side // 4 : side * 3 // 4, : side // 2] = True
        assert (grey & expected).sum() == expected.sum()
        assert (grey & ~expected).sum() <= 2


def test_cutout_may_reach_over_the_edge(image: Image.Image) -> None:
    for corner in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        pixels = render_view(image, ViewParams(cutout=(*corner, 0.5)), (32, 32))
        assert 60 <= (pixels == 128).all(0).sum() <= 68


def test_proof_names_every_step(image: Image.Image) -> None:
    params = ViewParams(flip=True, operations=(("rotate", -27.0),), cutout=(0.25, 0.5, 0.5))
    steps = [step.rpartition(":") for step in view_proof(image, params, (32, 32)).split()]
    assert [name for name, _, _ in steps] == [
        *("decode", "resize", "flip", "rotate(-27.000)", "cutout(0.250,0.500,0.500)")
    ]
    assert len({digest for _, _, digest in steps}) == 5


def test_proof_sees_one_changed_pixel(image: Image.Image) -> None:
    changed = image.copy()
    red, green, blue = changed.getpixel((0, 0))  # type: ignore[misc]
    changed.putpixel((0, 0), (red ^ 1, green, blue))
    size = (image.height, image.width)
    proofs = [view_proof(each, ViewParams(), size) for each in (image, image.copy(), changed)]
    assert proofs[0] == proofs[1] != proofs[2]


def test_a_resized_image_gives_the_same_views(image: Image.Image) -> None:
    """What the loader relies on when it resizes once for all views."""
    params = draw_view(ViewPolicy(), IDS[0], 0)
    small = squish(image, (24, 16))
    assert torch.equal(render_view(image, params, (24, 16)), render_view(small, params, (24, 16)))


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected plain or augmented"):
        ViewPolicy(name="wild")
    with pytest.raises(ConfigError, match="expected 0 to 10"):
        ViewPolicy(randaugment_magnitude=11.0)
    with pytest.raises(ConfigError, match="plain found with settings of RandAugment, Cutout or"):
        ViewPolicy(name="plain", cutout=0.25)


def test_policy_survives_json() -> None:
    policy = ViewPolicy(seed=7, cutout=0.25)
    assert ViewPolicy.from_json(policy.to_json()) == policy
    assert "crop_scale" not in policy.to_json()  # stores without crops are what they were
    cropping = ViewPolicy(crop_scale=0.25)
    assert ViewPolicy.from_json(cropping.to_json()) == cropping
    with pytest.raises(ConfigError, match="crop_scale 0 found, expected above 0 to 1"):
        ViewPolicy(crop_scale=0)


def test_shifts_are_those_of_the_affine_transform(random: np.random.Generator) -> None:
    for width, height in ((53, 37), (64, 64), (9, 250)):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        for amount in (*random.uniform(-0.45, 0.45, 40), 0.0, 0.45, -0.45, 0.5 / width):
            shifts = [round(amount * width), 0], [0, round(amount * height)]
            for name, shift in zip(("translate_x", "translate_y"), shifts, strict=True):
                plain = affine(
                    image,
                    angle=0.0,
                    translate=shift,
                    scale=1.0,
                    shear=[0.0, 0.0],
                    interpolation=InterpolationMode.BILINEAR,
                    fill=[128, 128, 128],
                )
                assert (np.asarray(APPLY[name](image, amount)) == np.asarray(plain)).all()


def test_crops_are_drawn_after_the_rest_and_lie_within_the_image(image: Image.Image) -> None:
    boxes = []
    for sample_id in IDS:
        for view in range(20):
            with_crop = draw_view(ViewPolicy(crop_scale=0.2), sample_id, view)
            assert replace(with_crop, crop=None) == draw_view(ViewPolicy(), sample_id, view)
            assert with_crop.crop
            boxes.append(with_crop.crop)
    left, top, right, bottom = np.array(boxes).T
    assert (np.minimum(left, top) >= 0).all()
    assert (np.maximum(right, bottom) <= 1).all()
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top)
    assert 0.15 < area.min() < 0.25
    assert 0.9 < area.max() <= 1
    assert 0.5 < area.mean() < 0.65
    assert 0.7 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.4
    params = ViewParams(crop=(0.25, 0.5, 0.75, 1.0))
    box = (0.25 * 53, 0.5 * 37, 0.75 * 53, 37)
    expected = image.resize((16, 24), Image.Resampling.BILINEAR, box=box)
    assert (render_view(image, params, (24, 16)).permute(1, 2, 0).numpy() == expected).all()
    assert view_proof(image, params, (24, 16)).split()[1].startswith("crop(0.250,0.500,0.750,1.0")


def test_the_loader_crops_each_view_of_the_whole_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    source, policy = open_source(tmp_path), ViewPolicy(crop_scale=0.3)
    requests = [[ViewRequest(0, (0, 1), prove=True)]]
    (batch,) = load_views(source, policy, [(32, 32)], requests, workers=0)
    for view in range(2):
        params = draw_view(policy, source.ids[0], view)
        expected = render_view(Image.fromarray(pixels), params, (32, 32))
        assert torch.equal(batch.pixels[0][0, view], expected)
        assert batch.proofs[0][view] == view_proof(Image.fromarray(pixels), params, (32, 32))


def test_equal_sizes_are_rendered_once(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "x.png")
    source, policy = open_source(tmp_path), ViewPolicy()
    for workers in (0, 1):
        (batch,) = load_views(
            source,
            policy,
            [(16, 16), (24, 24), (16, 16)],
            [[ViewRequest(0, (0, 1))]],
            workers=workers,
        )
        small, large, again = batch.pixels
        assert small.data_ptr() == again.data_ptr()
        assert (small.shape[-1], large.shape[-1]) == (16, 24)


def test_a_decoder_without_room_for_its_batches_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.png")

    def no_room(*shape: int) -> torch.Tensor:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(loader, "_shared", no_room)
    requests = [[ViewRequest(0, (0,))]]
    with pytest.raises(DataError, match=r"Too many open files.*ulimit -n 65536"):
        [*load_views(open_source(tmp_path), ViewPolicy(), [(8, 8)], requests, workers=1)]
    with pytest.raises(DataError, match="Too many open files"):  # this process does not end itself
        [*load_views(open_source(tmp_path), ViewPolicy(), [(8, 8)], requests, workers=0)]
