import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from same_store import arrays, assert_same_arrays

from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.data.views import draw_view, render_view
from distill.hierarchy.semantic import SemanticHierarchy
from distill.store.logit_store import LogitStore
from distill.targets.tensors import SparseTargets, sparsify
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher

Command = Callable[..., list[str]]


def test_store_holds_what_the_teacher_says_of_each_view(
    store: Path, figures: Path, hierarchy: SemanticHierarchy, teacher_weights: Path
) -> None:
    """One image and one view at a time, by the slow way round, against the stored rows."""
    from distill.data.images import read_image

    choice = MemberChoice(name="test_vit", weights=teacher_weights)
    teacher = load_teacher([choice], hierarchy, device=torch.device("cpu"))
    source, opened = open_source(figures), LogitStore.open(store)
    assert (opened.sample_ids == source.ids).all()
    for row in (0, 17, 95):
        for view in (0, 1):
            params = draw_view(ViewPolicy(), source.ids[row], view)
            pixels = render_view(read_image(source.samples[row]), params, (32, 32))
            exact = teacher.targets([pixels[None]])
            said = sparsify(exact, hierarchy, opened.manifest.encoding)
            block, place = divmod(row, 16)
            codes = opened.read_codes(block, view, opened.block_commits()[block])
            stored = opened.manifest.coding.dequantise(codes)
            targets = SparseTargets.from_rows(stored, opened.manifest.slots)
            torch.testing.assert_close(
                targets.confidence[place], said.confidence[0], atol=1.2e-4, rtol=0
            )
            torch.testing.assert_close(targets.sq_norm[place], said.sq_norm[0], atol=6e-4, rtol=0)
            step = 1.01 / opened.manifest.encoding.prob_steps  # a batch may round the other way
            torch.testing.assert_close(targets.prob[place], said.prob[0], atol=step, rtol=0)
            assert stored.valid[place]


def test_labels_are_those_of_the_data(
    store: Path, figures: Path, hierarchy: SemanticHierarchy
) -> None:
    expected = [hierarchy.index(str(s.label)) for s in open_source(figures).samples]
    assert LogitStore.open(store).labels.tolist() == expected


def test_report_and_certificate(distill, precompute_command: Command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ran = distill(*precompute_command(tmp_path / "store", "--json", "--views", 2))
    report = json.loads(ran.out)
    assert report["images"] == report["store"]["rows"] == 96
    assert report["store"]["complete"]
    info = json.loads(distill("store", "info", tmp_path / "store", "--json").out)
    agreement = info.pop("agreement")
    assert info == report["store"]
    assert agreement["agree"] == report["agreement"]["agree"]
    angles = info["fidelity"]["angle_deg"]
    assert [*angles] == [
        f"{loss}_{student}" for student in ("fresh", "middle", "near") for loss in ("mse", "kl")
    ]
    assert all(0 < each["median"] <= each["p99"] <= each["max"] < 90 for each in angles.values())
    assert info["fidelity"]["views"] == 192  # all of so few
    assert info["bytes_per_view"] == pytest.approx(info["bytes_total"] / 192)
    again = json.loads(distill(*precompute_command(tmp_path / "store", "--json", "--views", 2)).out)
    assert again["images"] == 0


def test_batch_workers_and_order_of_blocks_do_not_change_rows(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
    store: Path,
) -> None:
    other = precompute_command(tmp_path / "other", "--views", 2, "--workers", 2)
    assert distill(*other).code == 0
    assert_same_arrays(store, tmp_path / "other")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_store(
    precompute_command: Command, tmp_path: Path
) -> None:
    """kill -9 again and again, at whatever moment; each start goes on, until it is whole."""
    path = tmp_path / "killed"

    def command_for(path: Path) -> list[str]:
        words = precompute_command(path, "--views", 2, "--batch-size", 2, "--workers", 1)
        return [sys.executable, "-m", "distill.cli.main", *words]

    command = command_for(path)
    kills = 0
    for blocks in (1, 2, 3):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while running.poll() is None:
            time.sleep(0.002)
            if len(list((path / "commits").glob("0*/zarr.json"))) >= blocks:
                os.killpg(running.pid, signal.SIGKILL)
                break
        kills += running.wait() == -signal.SIGKILL
        assert LogitStore.open(path).pending_blocks()
    assert kills == 3
    mid = LogitStore.open(path)
    before = {b: record["committed_at"] for b, record in mid.records().items()}
    assert mid.certificate is None
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = LogitStore.open(path).records()
    assert all(after[b]["committed_at"] == stamp for b, stamp in before.items())
    uninterrupted = tmp_path / "uninterrupted"
    subprocess.run(command_for(uninterrupted), check=True, stdout=subprocess.DEVNULL)
    assert_same_arrays(path, uninterrupted)
    certificates = [LogitStore.open(p).require_complete() for p in (path, uninterrupted)]
    assert certificates[0] == certificates[1]
    digests = [LogitStore.open(p).content_digests() for p in (path, uninterrupted)]
    assert digests[0] == digests[1]


def damaged_copy(figures: Path, folder: Path, bad: int) -> Path:
    """The figures with the first `bad` training JPEGs cut short."""
    folder.mkdir()
    with (
        tarfile.open(figures / "train-000000.tar") as whole,
        tarfile.open(folder / "train-000000.tar", "w") as damaged,
    ):
        for i, member in enumerate(whole):
            content = whole.extractfile(member)
            assert content
            if i < 2 * bad and member.name.endswith(".jpg"):
                member.size //= 2
            damaged.addfile(member, content)
    return folder


def test_bad_images_are_recorded_and_their_rows_invalid(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    data = damaged_copy(figures, tmp_path / "data", bad=2)
    path = tmp_path / "store"
    ran = distill(*precompute_command(path, "--max-bad-fraction", 0.05, data=data))
    assert ran.code == 0
    assert "bad images: " in ran.out
    opened = LogitStore.open(path)
    recorded = [b for record in opened.records().values() for b in record["bad"]]
    assert {b["key"] for b in recorded} == {"train000000", "train000001"}
    assert all("undecodable image" in b["reason"] for b in recorded)
    valid = arrays(path)["confidence"][..., 0] > 0
    rows = [
        i
        for i, s in enumerate(open_source(data).samples)
        if s.key in ("train000000", "train000001")
    ]
    assert np.flatnonzero(~valid[:, 0]).tolist() == sorted(rows)
    inspected = json.loads(distill("inspect", path, "--json").out)
    assert inspected["invalid_rows"] == 2


def test_too_many_bad_images_stop_the_run(
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    figures: Path,
    tmp_path: Path,
) -> None:
    data = damaged_copy(figures, tmp_path / "data", bad=5)
    message = fails(*precompute_command(tmp_path / "store", data=data))
    assert " of 96 images are bad" in message
    assert "raise --max-bad-fraction" in message


def test_teacher_that_says_nan_stops_and_names_the_samples(
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    state = safetensors.torch.load_file(teacher_weights)
    state["head.weight"][3] = 3e38  # finite, but not its sums
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    (tmp_path / "nan.json").write_bytes(teacher_weights.with_suffix(".json").read_bytes())
    command = precompute_command(tmp_path / "store", weights=tmp_path / "nan.safetensors")
    assert "NaN or Inf for 16 images (train" in fails(*command)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--view-seed", 1], "view policy"),
        (["--view-policy", "plain"], "view policy"),
        (["--views", 3], "view policy"),
        (["--limit", 50], "dataset"),
        (["--precision", "bfloat16"], "teacher"),
        (["--input-size", 48], "teacher"),
    ],
)
def test_other_settings_do_not_touch_the_store(
    options: list[object],
    what: str,
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    before = tree_bytes(store)
    if "--views" not in options and what != "view policy":
        options = [*options, "--views", 2]
    assert f": {what} " in fails(*precompute_command(store, *options))
    assert tree_bytes(store) == before


def test_other_files_at_the_stores_place_are_left_alone(
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    before = tree_bytes(tmp_path)
    assert "choose another --store" in fails(*precompute_command(tmp_path / "thesis"))
    assert tree_bytes(tmp_path) == before


def test_torn_store_is_named_and_mended_from_its_copy(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
    tree_bytes: Callable[[Path], dict[str, bytes]],
) -> None:
    before = tree_bytes(store)
    (store / "zarr.json").write_text('{"zarr_format": 3')
    assert "damaged" in fails("inspect", store)
    assert (
        json.loads(distill(*precompute_command(store, "--views", 2, "--json")).out)["images"] == 0
    )
    assert tree_bytes(store) == before


def test_damaged_chunk_is_named_by_inspect_and_mended_by_precompute(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    store: Path,
) -> None:
    before = arrays(store)
    (store / "prob" / "c.3.0.0").write_bytes(b"garbage")
    assert "1 of 6 blocks are damaged (3)" in distill("inspect", store).out
    LogitStore.open(store).revoke([3])
    assert distill(*precompute_command(store, "--views", 2)).code == 0
    after = arrays(store)
    assert all((before[name] == after[name]).all() for name in before)
    assert "are damaged" not in distill("inspect", store).out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--teacher", "tresnet_1", "--weights", "hub"],
            "unknown teacher 'tresnet_1' (did you mean tresnet_",
        ),
        (["--label-set", "plane-figure"], "(did you mean plane-figures?)"),
        (["--label-set", "imagenet21k-p-fall11"], "pass the --label-set it was trained on"),
        (["--data", "/nowhere"], "no such file or folder"),
        (["--split", "test"], "no tars of split test found, only of train, val"),
        (["--view-policy", "plain", "--views", 2], "expected 1"),
        (["--view-policy", "wild"], "expected plain or augmented"),
        (["--device", "cuda:7"], "use --device auto"),
        (["--random-weights"], "expected one of them"),
        (["--weights", "hub"], "1 --teacher and 2 --weights found"),
        (["--head", "imagenet-2k"], "expected imagenet-1k, imagenet-12k"),
        (["--cutout", 2], "expected 0 to 1"),
        (["--view-policy", "plain", "--randaugment-ops", 1], "plain found with settings"),
        (["--shard-index", 4, "--num-shards", 4], "expected 0 to 3"),
        (["--shard-index", 1], "pass --num-shards as well"),
        (["--confidence", "reach"], "expected a flat teacher"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(
    options: list[object],
    message: str,
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    assert message in fails(*precompute_command(tmp_path / "store", *options))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_number_of_classes_say_so(
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    alone = tmp_path / "w.safetensors"  # without its card
    alone.write_bytes(teacher_weights.read_bytes())
    command = precompute_command(tmp_path / "s", weights=alone)
    command += ["--label-set", "imagenet21k-p-fall11"]
    message = fails(*command)
    assert "a classifier of 29 classes found, expected 11221" in message
    assert "--label-set" in message


def test_label_outside_the_label_set_is_one_line(
    fails,  # type: ignore[no-untyped-def]
    precompute_command: Command,
    tmp_path: Path,
) -> None:
    from PIL import Image

    (tmp_path / "data" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "data" / "n01440764" / "a.jpg")
    message = fails(*precompute_command(tmp_path / "store", data=tmp_path / "data"))
    assert "'n01440764/a' has label 'n01440764'" in message
    assert not (tmp_path / "store").exists()


def test_teacher_without_weights_or_network_says_how_to_give_a_file(
    tmp_path: Path, figures: Path
) -> None:
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "distill.cli.main", "precompute", "--teacher", "tresnet_l"),
            *("--data", str(figures), "--store", str(tmp_path / "store"), "--limit", "8"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    *said, _ = ran.stderr.splitlines()
    assert all(line.startswith("data: ") for line in said)
    assert "tresnet_v2_l.miil_in21k" in ran.stderr
    assert "--weights FILE" in ran.stderr
    assert not (tmp_path / "store").exists()


def test_tresnet_l_fills_a_store_of_11221_classes(distill, shared: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ran = distill(
        *("precompute", "--teacher", "tresnet_l", "--random-weights", "--limit", 4, "--workers", 0),
        *("--data", shared / "imagenet-sample", "--store", tmp_path / "store", "--json"),
    )
    assert ran.code == 0
    report = json.loads(ran.out)["store"]
    assert (report["rows"], report["hierarchies"]) == (4, 11)
    assert report["teacher"] == "tresnet_v2_l.miil_in21k"
    assert LogitStore.open(tmp_path / "store").manifest.teacher.random_weights
