"""What becomes of a student: judged, exported, trained on for other tasks."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import RealLabelsImagenet

from distill.data.images import read_image
from distill.data.source import label_indices, open_source
from distill.data.views import ViewParams, render_view
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import class_log_probs, hierarchy_logits
from distill.losses.baselines import present_classes
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import create_model
from distill.trainers.evaluation.average_precision import BinnedAveragePrecision
from distill.trainers.evaluation.meters import label_meter, tag_meter
from distill.trainers.evaluation.tags import read_tags
from distill.trainers.models.meaning import LogitsMeaning
from distill.trainers.process_group import World
from distill.trainers.recipe import Recipe
from distill.trainers.training.finetune import Crossing, crossing
from distill.trainers.training.objectives import TagsObjective

Command = Callable[..., list[str]]
SCHEMES = ("single-label", "multi-label", "semantic")
MACHINE = ("--device", "cpu", "--workers", 0)


@pytest.fixture(params=SCHEMES)
def run(
    request: pytest.FixtureRequest,
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tmp_path: Path,
) -> Path:
    """A student of each scheme."""
    words = ("--label-set", "plane-figures", "--image-size", 32, "--epochs", 4)
    ran = distill(*train("run", *words, "--scheme", request.param))
    assert ran.code == 0, ran.err
    return tmp_path / "run"


def answers(run: Path, data: Path, split: str) -> tuple[torch.Tensor, Any]:
    """Logits of all images, one at a time, by timm alone; and the images."""
    model = timm.create_model(
        "test_vit", num_classes=29, checkpoint_path=str(run / "student.safetensors")
    ).eval()
    source = open_source(data, split)
    with torch.inference_mode():
        logits = [
            model(render_view(read_image(sample), ViewParams(), (32, 32))[None].float() / 255)
            for sample in source.samples
        ]
    return torch.cat(logits), source


def average_precision(scores: np.ndarray, wanted: np.ndarray) -> float:
    """The mean of precision at each wanted item, as ranked by score."""
    ranked = wanted[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


def with_all_below(probs: torch.Tensor, hierarchy: SemanticHierarchy) -> torch.Tensor:
    """Each class's probability and those of its descendants."""
    total = probs.clone()
    for c, synset in enumerate(hierarchy.synsets):
        for ancestor in hierarchy.ancestors(synset):
            total[:, hierarchy.index(ancestor)] += probs[:, c]
    return total


def best_of_each(logits: torch.Tensor, hierarchy: SemanticHierarchy, scheme: str) -> torch.Tensor:
    """[images, hierarchies]: of a single-label model, by all that is below a class."""
    scores = with_all_below(logits.softmax(1), hierarchy) if scheme == "single-label" else logits
    return torch.stack([part.argmax(1) for part in hierarchy_logits(scores, hierarchy)], 1)


def test_evaluate_gives_what_plain_counting_gives(
    run: Path,
    distill,  # type: ignore[no-untyped-def]
    figures: Path,
    hierarchy: SemanticHierarchy,
) -> None:
    truth = figures / "labels.csv"
    ran = distill("evaluate", run, "--data", figures, "--truth", truth, *MACHINE, "--json")
    assert ran.code == 0, ran.err
    (found,) = json.loads(ran.out, parse_constant=pytest.fail).values()
    logits, source = answers(run, figures, "val")
    labels = torch.from_numpy(label_indices(source, hierarchy))
    scheme = json.loads((run / "run.json").read_text())["recipe"]["scheme"]

    semantic = hierarchy.semantic_labels(labels)
    guesses = best_of_each(logits, hierarchy, scheme)
    right = (guesses == semantic)[semantic >= 0]
    assert found["semantic_top1"] == pytest.approx(right.float().mean().item())
    history = json.loads((run / "run.json").read_text())["history"]
    assert history[-1]["validation"]["semantic_top1"] == found["semantic_top1"]

    occurring = {hierarchy.synsets[label] for label in labels.tolist()}
    above = {ancestor for synset in occurring for ancestor in hierarchy.ancestors(synset)}
    candidates = [hierarchy.index(synset) for synset in sorted(occurring - above)]
    scores = class_log_probs(logits, hierarchy) if scheme == "semantic" else logits
    places = [candidates[i] for i in scores[:, candidates].argmax(1).tolist()]
    judged = zip(places, labels.tolist(), strict=True)
    top1 = np.mean([a == b for a, b in judged if b in candidates])
    assert found["top1"] == pytest.approx(float(top1))
    assert found["top1"] <= found["top5"] <= 1

    probs = {
        "semantic": class_log_probs(logits, hierarchy).exp(),
        "single-label": with_all_below(logits.softmax(1), hierarchy),
        "multi-label": logits.sigmoid(),
    }[scheme].numpy()
    present = present_classes(labels, hierarchy).numpy()
    each = [average_precision(probs[:, c], present[:, c]) for c in range(29) if present[:, c].any()]
    assert found["macro_map"] == pytest.approx(np.mean(each), abs=2e-3)
    assert found["micro_map"] == pytest.approx(
        average_precision(probs.ravel(), present.ravel()), abs=2e-3
    )

    logits, source = answers(run, figures, "train")
    with truth.open() as file:
        known = {row["key"]: row["true_wnid"] for row in csv.DictReader(file)}
    tagged = hierarchy.semantic_labels(torch.from_numpy(label_indices(source, hierarchy)))
    true = hierarchy.semantic_labels(
        torch.tensor([hierarchy.index(known[sample.key]) for sample in source.samples])
    )
    guesses = best_of_each(logits, hierarchy, scheme)
    missing = (tagged < 0) & (true >= 0)
    assert missing.any()
    recovered = (guesses == true)[missing].float().mean().item()
    assert found["missing_tag_recovery"] == pytest.approx(recovered)


def test_evaluate_prints_a_table_and_draws_curves(
    run: Path,
    distill,  # type: ignore[no-untyped-def]
    figures: Path,
    tmp_path: Path,
) -> None:
    plot = tmp_path / "curves.png"
    ran = distill("evaluate", run, run, "--data", figures, *MACHINE, "--plot", plot)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split() == [
        "model",
        "semantic",
        "top-1",
        "top-5",
        "micro",
        "mAP",
        "macro",
        "mAP",
    ]
    assert lines[1].startswith(str(run))
    assert "semantic per hierarchy" in ran.out
    with Image.open(plot) as drawn:
        assert drawn.width > 500
    assert distill("evaluate", run, "--plot", tmp_path / "alone.svg").code == 0


def test_real_accuracy_is_membership_in_the_reassessed_labels(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    random: np.random.Generator,
) -> None:
    torch.manual_seed(3)
    model, weights = create_model("test_vit", 1000), tmp_path / "model.safetensors"
    known = RealLabelsImagenet([f"{i}" for i in range(50_000)]).real_labels
    chosen = sorted(known)[:40]
    images = tmp_path / "images" / "val"
    images.mkdir(parents=True)
    for name in chosen:
        pixels = random.integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(images / name.replace(".JPEG", ".png"))
    # One answer for all images: a label that one of them has.
    answer = next(labels[0] for name in chosen if (labels := known[name]))
    state = model.state_dict()
    state["head.weight"].zero_()
    state["head.bias"].zero_()[answer] = 1.0
    safetensors.torch.save_file(state, weights)
    ModelCard(model="test_vit", num_classes=1000, input=ModelInput(size=(32, 32))).write(weights)
    data = ("--data", images.parent, "--labels", "real", *MACHINE)
    (found,) = json.loads(distill("evaluate", weights, *data, "--json").out).values()
    judged = [name for name in chosen if known[name]]
    assert judged
    expected = np.mean([answer in known[name] for name in judged])
    assert expected > 0
    assert found["real_top1"] == pytest.approx(float(expected))
    (images / chosen[0].replace(".JPEG", ".png")).rename(images / "cat.png")
    assert "sample 'cat' found, expected ILSVRC2012_val" in fails("evaluate", weights, *data)


def test_exported_it_is_a_model_of_timms(
    run: Path,
    distill,  # type: ignore[no-untyped-def]
    figures: Path,
    hierarchy: SemanticHierarchy,
    tmp_path: Path,
) -> None:
    """By local-dir, by file, and in ONNX: the same answers, for any batch."""
    import onnxruntime

    out = tmp_path / "exported"
    ran = distill("export", run, "--out", out, "--onnx")
    assert ran.code == 0, ran.err
    logits, source = answers(run, figures, "val")
    scheme = json.loads((run / "run.json").read_text())["recipe"]["scheme"]
    pixels = torch.stack(
        [render_view(read_image(s), ViewParams(), (32, 32)) for s in source.samples[:5]]
    )
    images = pixels.float() / 255
    local = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    overlay = {"file": str(out / "model.safetensors"), "num_classes": 29}
    by_file = timm.create_model(
        "test_vit", num_classes=29, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    with torch.inference_mode():
        for model in (local, by_file):
            torch.testing.assert_close(model(images), logits[:5], rtol=1e-4, atol=1e-5)
    config = timm.data.resolve_model_data_config(local)
    assert config["input_size"] == (3, 32, 32)
    assert tuple(config["mean"]) == (0.0, 0.0, 0.0)
    assert (config["crop_mode"], config["crop_pct"]) == ("squash", 1.0)
    written = json.loads((out / "config.json").read_text())
    assert written["label_names"] == list(hierarchy.synsets)
    assert written["label_descriptions"]["n13878634"] == hierarchy.display_name("n13878634")
    assert SemanticHierarchy.load(out / "hierarchy.json").digest == hierarchy.digest
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    for count in (1, 5):
        found, probs = session.run(["logits", "probs"], {"pixels": images[:count].numpy()})
        np.testing.assert_allclose(found, logits[:count].numpy(), rtol=1e-3, atol=1e-4)
        expected = LogitsMeaning(scheme).probs(logits[:count], hierarchy)
        np.testing.assert_allclose(probs, expected.numpy(), rtol=1e-3, atol=1e-5)


def test_what_is_no_trained_model_is_one_line(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    figures: Path,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    data = ("--data", figures, *MACHINE)
    (tmp_path / "empty").mkdir()
    assert "no weights found, expected one of student.safetensors" in fails(
        "evaluate", tmp_path / "empty", *data
    )
    (tmp_path / "empty" / "run.json").write_text("{}")
    assert "a run that is not finished" in fails("evaluate", tmp_path / "empty", *data)
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(teacher_weights.read_bytes())
    assert "no card bare.json beside it" in fails("export", bare, "--out", tmp_path / "out")
    assert "nothing says which classes" in fails("evaluate", teacher_weights, *data)
    wrong = ("--label-set", "imagenet21k-p-winter21")
    assert "29 classes found, label set imagenet21k-p-winter21 has 10450" in fails(
        "evaluate", teacher_weights, *data, *wrong
    )
    message = fails("export", teacher_weights, *wrong, "--out", tmp_path / "out")
    assert "29 classes found, label set imagenet21k-p-winter21 has 10450" in message
    assert "unknown model 'test_vitt'" in fails("evaluate", "timm:test_vitt", *data)
    assert "cannot be downloaded" in fails("evaluate", "timm:test_vit", *data)
    assert "neither --data nor --plot" in fails("evaluate", teacher_weights)
    known = ("--label-set", "plane-figures")
    truth = tmp_path / "truth.csv"
    truth.write_text("key,true_wnid\nnobody,n13878634\n")
    message = fails("evaluate", teacher_weights, *data, *known, "--truth", truth)
    assert "lacks 96 of the 96 samples" in message
    truth.write_text("a,b\n1,2\n")
    message = fails("evaluate", teacher_weights, *data, *known, "--truth", truth)
    assert "with the columns key and true_wnid" in message
    assert distill(*train("run", *known, "--image-size", 32)).code == 0
    (tmp_path / "run" / "run.json").write_text('{"recipe": {"scheme": "best"}}')
    assert "not the record of a run" in fails("evaluate", tmp_path / "run", *data)


# -- fine-tuning ----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, random: np.random.Generator) -> Path:
    """One folder a class, red, green and blue, with names that are no synsets."""
    root = tmp_path / "folders"
    for split, count in (("train", 24), ("val", 6)):
        for channel, name in enumerate(("blood red", "grass", "sky")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 120, (32, 32, 3), np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(root / split / name / f"{split}{channel}_{i}.png")
    return root


@pytest.fixture
def tune(folders: Path, tmp_path: Path) -> Command:
    """`distill finetune` on the folders."""

    def command(out: str, *more: object) -> list[str]:
        fixed = ["finetune", "--student", "test_vit", "--image-size", 32, "--data", folders]
        fixed += ["--out", tmp_path / out, *MACHINE, "--batch-size", 24, "--epochs", 8]
        fixed += ["--lr", 0.003, "--view-policy", "plain", "--cache", tmp_path / "cache"]
        return [str(word) for word in (*fixed, *more)]

    return command


@pytest.mark.parametrize("scheme", ["single-label", "multi-label"])
def test_finetuned_from_our_weights_it_learns_the_folders_own_classes(
    scheme: str,
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    tune: Command,
    tmp_path: Path,
) -> None:
    assert distill(*train("run", "--label-set", "plane-figures", "--image-size", 32)).code == 0
    words = ("--init", tmp_path / "run", "--scheme", scheme)
    ran = distill(*tune("tuned", *words, "-o", "multi_label_loss=bce", "--json"))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["validation"]["top1"] > 0.8
    body = safetensors.torch.load_file(tmp_path / "tuned" / "student.safetensors")
    assert body["head.weight"].shape[0] == 3
    out = tmp_path / "exported"
    assert distill("export", tmp_path / "tuned", "--out", out).code == 0
    assert json.loads((out / "config.json").read_text())["label_names"] == [
        "blood red",
        "grass",
        "sky",
    ]


def test_a_finetuned_teacher_teaches_its_own_classes(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tune: Command,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    assert distill(*tune("teacher", "--init", "random")).code == 0
    weights = tmp_path / "teacher" / "student.safetensors"
    kd = ("--targets", "timm:test_vit", "--kd-weight", 100, "--init", "random")
    ran = distill(*tune("student", *kd, "--teacher-weights", weights))
    assert ran.code == 0, ran.err
    history = json.loads((tmp_path / "student" / "run.json").read_text())["history"]
    assert history[-1]["kd_loss"] < history[0]["kd_loss"] / 2
    message = fails(*tune("other", *kd, "--teacher-weights", teacher_weights))
    assert "teacher.safetensors: trained on hierarchy" in message


def tag_files(folder: Path, tags: dict[str, list[str]]) -> list[Path]:
    """The same tags as CSV, COCO and VOC."""
    table = folder / "tags.csv"
    lines = "".join(f"{key},{';'.join(names)}\n" for key, names in tags.items())
    table.write_text("key,tags\n" + lines)
    names = sorted({name for some in tags.values() for name in some})
    coco = folder / "instances.json"
    images = [{"id": i, "file_name": f"{key}.png"} for i, key in enumerate(tags)]
    annotations = [
        {"image_id": i, "category_id": names.index(name), "bbox": [0, 0, 1, 1]}
        for i, some in enumerate(tags.values())
        for name in some
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    coco.write_text(json.dumps(document))
    voc = folder / "Annotations"
    voc.mkdir()
    for key, some in tags.items():
        objects = "".join(f"<object><name>{name}</name></object>" for name in some)
        (voc / f"{key}.xml").write_text(f"<annotation>{objects}</annotation>")
    return [table, coco, voc]


def test_tags_of_csv_coco_and_voc_are_the_same_and_are_learned(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tune: Command,
    folders: Path,
    tmp_path: Path,
) -> None:
    names = ("red", "green", "blue")
    tags = {}
    for image in sorted(folders.rglob("*.png")):
        channel = int(image.stem.partition("_")[0][-1])
        tags[image.stem] = [names[channel], "warm"] if channel == 0 else [names[channel]]
    tags[next(iter(tags))] = []
    files = tag_files(tmp_path, tags)
    read = [read_tags(file) for file in files]
    source = open_source(folders)
    assert [each.classes for each in read] == [("blue", "green", "red", "warm")] * 3
    present = [each.present(source, each.classes) for each in read]
    assert (present[0] == present[1]).all()
    assert (present[0] == present[2]).all()
    assert present[0].sum() == sum(len(tags[s.key.rpartition("/")[2]]) for s in source.samples)
    ran = distill(*tune("tagged", "--tags", files[1], "--init", "random", "--json"))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["validation"]["macro_map"] > 0.8
    weights = tmp_path / "tagged" / "student.safetensors"
    kd = ("--targets", "timm:test_vit", "--teacher-weights", weights, "--kd-weight", 30)
    ran = distill(*tune("taught", "--tags", files[0], *kd, "--init", "random", "--json"))
    assert ran.code == 0, ran.err
    # Its focal weights have no gradient, so asymmetric loss itself says little of what is learned.
    assert json.loads(ran.out)["validation"]["macro_map"] > 0.8
    taxonomy, paths = tmp_path / "tags.json", folders / "train.csv"
    taxonomy.write_text(json.dumps({"parents": dict.fromkeys(read[0].classes)}))
    images = sorted((folders / "train").rglob("*.png"))
    paths.write_text("key,path\n" + "".join(f"{p.stem},{p.relative_to(folders)}\n" for p in images))
    words = ("--teacher", "test_vit", "--weights", weights, "--head", "sigmoid")
    words += ("--label-set", taxonomy, "--data", paths, "--store", tmp_path / "store")
    ran = distill("precompute", *words, "--view-policy", "plain", *MACHINE)
    assert ran.code == 0, ran.err
    kd = ("--data", paths, "--targets", tmp_path / "store", "--kd-weight", 1)
    ran = distill(*tune("of-store", "--tags", files[0], *kd, "--init", "random"))
    assert ran.code == 0, ran.err
    history = json.loads((tmp_path / "of-store" / "run.json").read_text())["history"]
    assert history[-1]["kd_loss"] < history[0]["kd_loss"]
    single = ("--tags", files[0], "--scheme", "single-label", "--init", "random")
    assert "expected multi-label" in fails(*tune("bad", *single))
    for content, message in (
        ("key,tags\nx,red\n", "lacks 72 of the 72 images"),
        ("a,b\n1,2\n", "columns a, b found, expected key and tags"),
        ("key;tags\n1;2\n", "columns key;tags found, expected key and tags with a comma"),
        ("key,tags\nx,red,blue\n", "line 2 has more fields than the header, expected ; between"),
        ("key,tags\n", "no tags in it"),
    ):
        files[0].write_text(content)
        assert message in fails(*tune("bad", "--tags", files[0], "--init", "random"))
    files[1].write_text('{"images": [{"id": 1}]}')
    assert "no categories and no annotations found" in fails(*tune("bad", "--tags", files[1]))
    document = {"images": [{"id": 1, "file_name": "a.png"}], "categories": []}
    annotations = [{"image_id": 1, "category_id": 7}]
    files[1].write_text(json.dumps({**document, "annotations": annotations}))
    message = fails(*tune("bad", "--tags", files[1]))
    assert "annotation 0 has category_id 7, which is none of the 0 categories" in message
    files[0].write_text(" key, tags\n" + "".join(f"{key}, red ; blue\n" for key in tags))
    assert read_tags(files[0]).tags[next(iter(tags))] == ["red", "blue"]
    bomb = '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    next(files[2].iterdir()).write_text(bomb)
    assert "cannot be read as tags (EntitiesForbidden" in fails(*tune("bad", "--tags", files[2]))


def test_compared_starts_are_drawn_with_the_point_where_random_catches_up(
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
    tune: Command,
    tmp_path: Path,
) -> None:
    assert distill(*tune("first", "--init", "random", "--epochs", 2)).code == 0
    weights = tmp_path / "first" / "student.safetensors"
    words = ("--compare", f"{weights},random", "--longer", 2, "--epochs", 3)
    ran = distill(*tune("both", *words))
    assert ran.code == 0, ran.err
    lengths = [
        len(json.loads((tmp_path / "both" / name / "run.json").read_text())["history"])
        for name in ("student", "random")
    ]
    assert lengths == [3, 6]
    assert "random weights" in ran.out
    with Image.open(tmp_path / "both" / "comparison.png") as drawn:
        assert drawn.width > 500
    assert distill(*tune("both", *words)).code == 0  # done already
    assert "expected two or more starts" in fails(*tune("twice", "--compare", "random,random"))


def test_curves_cross_where_the_lower_one_reaches_the_other_held_at_its_end() -> None:
    first = [(1.0, 0.5), (2.0, 0.6)]
    met = crossing(first, [(1, 0.1), (2, 0.3), (3, 0.5), (4, 0.7)])
    assert met
    assert (met.epoch, met.accuracy) == pytest.approx((3.5, 0.6))
    assert crossing(first, [(1, 0.1), (2, 0.3)]) is None
    assert crossing(first, [(1, 0.9), (2, 0.95)]) == Crossing(epoch=1, accuracy=0.9, leads=True)
    met = crossing(first, [(1, 0.3), (2, 0.7)])
    assert met
    assert (met.epoch, met.accuracy) == pytest.approx((1 + 2 / 3, 0.3 + 0.4 * 2 / 3))


def test_what_does_not_fit_is_said_before_training(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    tune: Command,
    folders: Path,
    tmp_path: Path,
) -> None:
    random = ("--init", "random")
    (folders / "val" / "zebra").mkdir()
    Image.new("RGB", (32, 32)).save(folders / "val" / "zebra" / "z.png")
    message = fails(*tune("run", *random))
    assert "1 classes of the validation images are not among the 3" in message
    (folders / "val" / "zebra" / "z.png").unlink()
    message = fails(*tune("run", "--compare", "random,gone.safetensors"))
    assert "gone.safetensors found in --compare, but no such file" in message
    (folders / "val").rename(folders / "away")
    first = tmp_path / "first.safetensors"
    first.write_bytes(b"")
    message = fails(*tune("run", "--compare", f"random,{first}"))
    assert "expected some to compare by; pass --val-data" in message
    assert not (tmp_path / "run").exists()


def test_a_run_on_tags_goes_on_with_the_same_tags_alone(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    tune: Command,
    folders: Path,
    tmp_path: Path,
) -> None:
    tags = {p.stem: [p.parent.name.split()[-1]] for p in sorted(folders.rglob("*.png"))}
    table, *_ = tag_files(tmp_path, tags)
    words = ("--tags", table, "--init", "random")
    assert distill(*tune("run", *words)).code == 0
    judged = ("evaluate", tmp_path / "run", "--data", folders, "--tags", table, *MACHINE)
    (found,) = json.loads(distill(*judged, "--json").out).values()
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    assert found["macro_map"] == history[-1]["validation"]["macro_map"]
    assert "micro mAP" in distill(*judged).out
    listed = tmp_path / "list.csv"
    listed.write_text("key,wnid\ntrain0_0,red\n")
    message = fails(*tune("other", *words, "--samples", listed))
    assert "labels found for images with tags" in message
    table.write_text(table.read_text().replace("red", "x").replace("sky", "red"))
    table.write_text(table.read_text().replace("x", "sky"))
    assert "tags_digest is" in fails(*tune("run", *words))


def test_tag_files_are_read_to_the_letter(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name in ("1", f"only-{folder}"):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / folder / f"{name}.png")
    source = open_source(tmp_path / "images")
    table = tmp_path / "tags.csv"
    table.write_text(
        "\ufeffkey,tags\na/1,cat\na/1,dog; cat\nb/1,\nonly-a,dog\nonly-b,cat\n", encoding="utf-8"
    )
    present = read_tags(table).present(source, ("cat", "dog"))
    found = dict(zip([s.key for s in source.samples], present.tolist(), strict=True))
    assert found == {
        "a/1": [True, True],
        "b/1": [False, False],
        "a/only-a": [False, True],
        "b/only-b": [True, False],
    }
    coco = tmp_path / "coco.json"
    document = {
        "images": [{"id": 1, "file_name": "a/1.png"}, {"id": 2, "file_name": "b/1.png"}],
        "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 2, "category_id": 9}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
    }
    coco.write_text(json.dumps(document))
    assert dict(read_tags(coco).tags) == {"a/1": ["cat"], "b/1": ["dog"]}
    assert read_tags(coco).classes == ("cat", "dog")
    table.write_text("key,tags\na/1,cat\n1,dog\n")
    with pytest.raises(DataError, match=r"lacks 3 of the 4 images .*first: "):
        read_tags(table).present(source, ("cat", "dog"))
    document["categories"][0]["name"] = "cat"  # type: ignore[index]
    coco.write_text(json.dumps(document))
    with pytest.raises(DataError, match="two categories of one name"):
        read_tags(coco)
    voc = tmp_path / "voc"
    voc.mkdir()
    (voc / "1.xml").write_text("<annotation><object><pose>left</pose></object></annotation>")
    with pytest.raises(DataError, match=r"1.xml: an object without a name"):
        read_tags(voc)


def test_images_without_a_label_do_not_count_in_evaluation(
    distill,  # type: ignore[no-untyped-def]
    teacher_weights: Path,
    tmp_path: Path,
    random: np.random.Generator,
) -> None:
    data = tmp_path / "data"
    for wnid in ("n13878634", "n13873502"):
        (data / wnid).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(data / wnid / f"{i}.png")
    hierarchy = SemanticHierarchy.bundled("plane-figures")
    source = open_source(data)
    labels = label_indices(source, hierarchy)
    logits = torch.randn(12, 29, generator=torch.Generator().manual_seed(0))
    figures = []
    for given in (labels, np.concatenate([labels, np.full(12, -1)])):
        meter = label_meter(given, hierarchy, LogitsMeaning("semantic"), torch.device("cpu"))
        meter.update(logits=logits, rows=[*range(12)])
        if len(given) > 12:
            meter.update(logits=logits, rows=[*range(12, 24)])
        figures.append(meter.result(World()))
    assert figures[0] == figures[1]
    assert (
        tag_meter(
            np.zeros((3, 29), np.int8), hierarchy, LogitsMeaning("semantic"), torch.device("cpu")
        ).result(World())
        == {}
    )


def test_records_and_lists_that_are_damaged_are_one_line(
    fails,  # type: ignore[no-untyped-def]
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    figures: Path,
    teacher_weights: Path,
    tmp_path: Path,
) -> None:
    common = ("--label-set", "plane-figures", "--image-size", 32)
    assert distill(*train("run", *common)).code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    for history in ([1, 2], [{"validation": 3}], [{"epoch": 1, "validation": 3}]):
        (tmp_path / "run" / "run.json").write_text(json.dumps({**run, "history": history}))
        plot = ("--plot", tmp_path / "x.png")
        assert "not the record of a run" in fails("evaluate", tmp_path / "run", *plot)
    listed = tmp_path / "list.csv"
    listed.write_text("key,wnid\n" + "x" * 140_000 + ",\n")
    assert "cannot be read" in fails(*train("bad", *common, "--samples", listed))
    listed.write_text('"key","wnid"\n"train000001","n13878634"\n')
    ran = distill(*train("bad", *common, "--samples", listed))
    assert "1 of 96 images are on the list" in ran.out
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "key,true_wnid\n" + "".join(f"{s.key}\n" for s in open_source(figures).samples)
    )
    message = fails(
        "evaluate", teacher_weights, "--label-set", "plane-figures", "--data", figures, *MACHINE,
        "--truth", truth,
    )  # fmt: skip
    assert "'' is not in the label set" in message


def test_finetuning_takes_the_input_of_the_run_that_it_starts_from(
    distill,  # type: ignore[no-untyped-def]
    train: Command,
    folders: Path,
    tmp_path: Path,
) -> None:
    words = ("--label-set", "plane-figures", "--image-size", 48, "-o", "normalisation=model")
    assert distill(*train("run", *words)).code == 0
    more = ["finetune", "--student", "test_vit", "--init", tmp_path / "run", "--data", folders]
    more += ["--epochs", 1, "--workers", 0, "--device", "cpu", "--batch-size", 16]
    ran = distill(*more, "--out", tmp_path / "tuned")
    assert "input 48×48, mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in ran.out, ran.err
    told = distill(*more, "--out", tmp_path / "told", "--image-size", 64)
    assert "input 64×64, mean 0.5" in told.out, told.err


def test_difficult_objects_of_voc_are_neither_there_nor_not(folders: Path, tmp_path: Path) -> None:
    source = open_source(folders)
    (tmp_path / "Annotations").mkdir()
    for i, sample in enumerate(source.samples):
        hard = "<difficult>1</difficult>" if i == 0 else "<difficult>0</difficult>"
        inside = f"<object><name>dog</name>{hard}</object>" if i < 2 else ""
        inside += "<object><name>cat</name></object>" if i == 2 else ""
        stem = sample.key.rpartition("/")[2]
        (tmp_path / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{inside}</annotation>")
    classes = SemanticHierarchy.from_chains(["cat", "dog"], {}, name="tags")
    tags = read_tags(tmp_path / "Annotations").present(source, classes.synsets)
    assert tags[:4].tolist() == [[0, -1], [0, 1], [1, 0], [0, 0]]
    recipe = Recipe(student="test_vit", scheme="multi-label", multi_label_loss="bce")
    objective = TagsObjective(hierarchy=classes, given=tags, recipe=recipe)
    logits = torch.zeros(4, 2, requires_grad=True)
    objective.loss(logits=logits, labels=objective.labels([0, 1, 2, 3])).backward()
    assert logits.grad is not None
    # An image without tags pushes all of them down; what is not sure pushes nothing.
    assert logits.grad.sign().tolist() == [[1, 0], [1, -1], [-1, 1], [1, 1]]
    scores = torch.tensor([[0.0, 9.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    exact = tag_meter(tags[:4], classes, LogitsMeaning("multi-label"), torch.device("cpu"))
    exact.update(logits=scores, rows=[0, 1, 2, 3])
    assert exact.result(World()) == {"micro_map": 1.0, "macro_map": 1.0}
    binned = BinnedAveragePrecision(2, torch.device("cpu"))
    binned.update(scores.sigmoid(), torch.from_numpy(tags[:4]).long())
    assert binned.macro() == 1.0
