"""A run used as a teacher is read as what it was trained as; agreement with the tags tells."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from distill.data.images import read_image
from distill.data.source import open_source
from distill.data.view_policy import CentreCrop
from distill.data.views import ViewParams, render_view, resized
from distill.errors import ConfigError, TeacherError
from distill.hierarchy.flat_heads import FlatHead, TagHead
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.models.card import ModelCard, ModelInput
from distill.models.creation import create_model
from distill.store.logit_store import LogitStore
from distill.store.upkeep.reader import RowReader
from distill.targets.agreement import TagAgreement, agreement_of
from distill.targets.encoding import EncodingSpec
from distill.targets.rows import TargetRows
from distill.targets.tensors import SparseTargets, densify, sparsify
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.trainers.evaluation.average_precision import BinnedAveragePrecision
from distill.trainers.models.export import export_folder
from distill.trainers.models.trained import TrainedModel, judging_policy, open_trained
from distill.trainers.recipe import Scheme
from distill.wire.client import TeacherClient
from tests.format_reader import read_store
from tests.live import live

CPU = torch.device("cpu")
Distill = Callable[..., object]


def as_trained(weights: Path, folder: Path, **card: object) -> Path:
    """A copy of a weight file whose card says more."""
    folder.mkdir()
    path = folder / "student.safetensors"
    path.write_bytes(weights.read_bytes())
    document = json.loads(weights.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**document, **card}))
    return folder


def head_of(folder: Path, hierarchy: SemanticHierarchy, head: str | None = None) -> object:
    choice = MemberChoice(name="test_vit", weights=folder, head=head)
    return load_teacher([choice], hierarchy, device=CPU).members[0].head


def test_a_card_decides_how_logits_are_read(
    teacher_weights: Path, hierarchy: SemanticHierarchy, tmp_path: Path
) -> None:
    semantic = as_trained(teacher_weights, tmp_path / "a", scheme="semantic")
    single = as_trained(teacher_weights, tmp_path / "b", scheme="single-label")
    taught = as_trained(teacher_weights, tmp_path / "c", scheme="single-label", taught=True)
    multi = as_trained(teacher_weights, tmp_path / "d", scheme="multi-label")
    assert head_of(semantic, hierarchy) is None
    assert isinstance(head_of(single, hierarchy), FlatHead)
    assert head_of(taught, hierarchy) is None
    assert isinstance(head_of(multi, hierarchy), TagHead)
    assert head_of(single, hierarchy, "semantic") is None
    assert isinstance(head_of(semantic, hierarchy, "multi-label"), TagHead)


def first_pixels(figures: Path) -> torch.Tensor:
    """The first eight images as a teacher of plain views sees them."""
    samples = open_source(figures).limited(8).samples
    return torch.stack([render_view(read_image(s), ViewParams(), (32, 32)) for s in samples])


def test_a_flat_teacher_is_stored_as_it_is(
    distill: Callable[..., Any],
    fails: Callable[..., str],
    teacher_weights: Path,
    hierarchy: SemanticHierarchy,
    figures: Path,
    tmp_path: Path,
) -> None:
    """One softmax over all classes, from the logits to the student's loss."""
    flat = as_trained(teacher_weights, tmp_path / "flat", scheme="single-label")
    store, data = tmp_path / "store", ("--data", figures, "--device", "cpu", "--workers", 0)
    choice = ("--teacher", "test_vit", "--label-set", "plane-figures:flat")
    ran = distill(
        *(
            "precompute",
            *choice,
            "--weights",
            flat,
            *data,
            "--store",
            store,
            "--view-policy",
            "plain",
        ),
        *("--encoding", "entries=29,steps=65535"),
    )
    assert ran.code == 0, ran.err
    opened = LogitStore.open(store)
    assert opened.manifest.hierarchy.classes_per_hierarchy == (29,)
    said = opened.manifest.coding.dequantise(RowReader(opened, 0).rows(np.arange(8)))
    pixels = first_pixels(figures)
    model = open_trained(str(flat)).model
    with torch.inference_mode():
        exact = model(pixels.float() / 255).softmax(1).numpy()
    found = np.take_along_axis(exact, said.index.astype(np.int64), 1)
    np.testing.assert_allclose(said.prob, found, atol=2e-5)
    student = ("--student", "test_resnet", "--init", "random", "--image-size", 32, "--epochs", 1)
    run = ("pretrain", *student, "--batch-size", 32, *data, "--targets", store)
    ran = distill(*run, "--scheme", "single-label", "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    judged = distill("evaluate", tmp_path / "run", *data, "--label-set", "plane-figures", "--json")
    assert next(iter(json.loads(judged.out).values()))["semantic_top1"] is not None
    # A semantic head has no common softmax.
    semantic = as_trained(teacher_weights, tmp_path / "semantic", scheme="semantic")
    other = ("--weights", semantic, *data, "--store", tmp_path / "x")
    assert "pass the --label-set it was trained on" in fails("precompute", *choice, *other)


@pytest.mark.parametrize("scheme", ["multi-label", "single-label"])
def test_raw_answers_are_stored_served_and_learned_as_they_are(
    scheme: Scheme,
    distill: Callable[..., Any],
    fails: Callable[..., str],
    teacher_weights: Path,
    hierarchy: SemanticHierarchy,
    figures: Path,
    tmp_path: Path,
) -> None:
    """A yes or no for each class, or one softmax, from the logits to the student's loss."""
    head, answers, said_of_it = {
        "multi-label": ("sigmoid", "sigmoid", "a yes or no for each"),
        "single-label": ("flat", "flat", "one softmax over all"),
    }[scheme]
    tagger = as_trained(teacher_weights, tmp_path / "tagger", scheme=scheme)
    store, data = tmp_path / "store", ("--data", figures, "--device", "cpu", "--workers", 0)
    choice = ("--teacher", "test_vit", "--weights", tagger, "--label-set", "plane-figures")
    run = ("precompute", *choice, *data, "--view-policy", "plain", "--encoding", "fine")
    message = f"expected it for all, or `--head {scheme}`"
    both = (*choice[:4], *choice[:4], *choice[4:])
    heads = ("--head", head, "--head", "semantic")
    assert message in fails(run[0], *both, *run[7:], *heads, "--store", store)
    reach = ("--head", head, "--confidence", "reach")
    assert "have no confidence but themselves" in fails(*run, *reach, "--store", store)
    ran = distill(*run, "--head", head, "--store", store)
    assert ran.code == 0, ran.err
    assert f"29 classes, {said_of_it}, as they are" in ran.err
    opened = LogitStore.open(store)
    said = opened.manifest.coding.dequantise(RowReader(opened, 0).rows(np.arange(8)))
    pixels = first_pixels(figures)
    model = open_trained(str(tagger)).model
    with torch.inference_mode():
        logits = model(pixels.float() / 255)
        exact = logits.sigmoid() if answers == "sigmoid" else logits.softmax(1)
        exact = exact[:, hierarchy.class_order]
    slots = opened.manifest.slots
    dense = densify(SparseTargets.from_rows(said, slots, answers), hierarchy)
    for k, members in enumerate(hierarchy.slices):
        kept = said.index[:, sum(slots[:k]) : sum(slots[: k + 1])].astype(np.int64)
        found = np.take_along_axis(exact[:, members].numpy(), kept, 1)
        prob = said.prob[:, sum(slots[:k]) : sum(slots[: k + 1])]
        np.testing.assert_allclose(prob, np.where(prob > 0, found, 0), atol=0.51 / 511)
        assert torch.allclose(dense[:, members].sum(1), exact[:, members].sum(1), atol=0.02)
    plain = read_store(store)
    np.testing.assert_allclose(plain["confidence"][:8, 0], said.confidence, atol=1e-6)
    np.testing.assert_allclose(plain["sq_norm"][:8, 0], said.sq_norm, atol=1e-6)
    np.testing.assert_allclose(
        said.sq_norm[:, 0], exact[:, hierarchy.slices[0]].square().sum(1), atol=1e-3
    )
    angles = opened.require_complete()["fidelity"]["angle_deg"]
    assert angles["mse_middle"]["p99"] < 6
    assert distill("store", "verify", store).code == 0
    asked = distill("store", "verify", store, *choice, *data[:4], "--head", head)
    assert asked.code == 0, asked.err
    small = tmp_path / "small"
    ran = distill("store", "transcode", store, "--out", small, "--encoding", "small")
    assert ran.code == 0, ran.err
    assert distill("store", "diff", store, store).code == 0
    assert distill("store", "diff", store, small).code == 1
    assert "have no confidence per hierarchy" in fails("inspect", store)
    judged = distill("evaluate", store, *data[:4], "--split", "train", "--json")
    assert judged.code == 0, judged.err

    student = ("--student", "test_resnet", "--init", "random", "--image-size", 32, "--epochs", 3)
    run = ("pretrain", *student, "--batch-size", 32, *data, "--targets", store)
    assert "scheme semantic found with" in fails(*run, "--out", tmp_path / "bad")
    ran = distill(*run, "--scheme", scheme, "--kd-weight", 1, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    assert history[-1]["kd_loss"] < history[0]["kd_loss"]
    # It learned what labels say, so it is read like a student of labels.
    assert json.loads((tmp_path / "run" / "student.json").read_text())["taught"] is False
    assert "taught" not in distill("evaluate", tmp_path / "run", *data[:4]).err

    choices = [MemberChoice(name="test_vit", weights=tagger, head=head)]
    teacher = load_teacher(choices, hierarchy, device=CPU)
    with live(teacher) as server:
        client = TeacherClient(f"http://{server.address}", deadline_s=20)
        answered = client.infer_images(pixels.permute(0, 2, 3, 1).numpy())
        client.close()
    assert answered.answers == answers
    standard = EncodingSpec.named("standard", hierarchy.classes_per_hierarchy)
    expected = sparsify(teacher.targets([pixels]), hierarchy, standard)
    # Within a step: a batch of another size may compute other last bits.
    torch.testing.assert_close(answered.prob, expected.prob, atol=1.1 / 191, rtol=0)
    torch.testing.assert_close(answered.confidence, expected.confidence, atol=1e-3, rtol=0)


def test_a_tag_head_shares_out_each_hierarchy(hierarchy: SemanticHierarchy) -> None:
    logits = torch.randn(5, hierarchy.num_classes, generator=torch.Generator().manual_seed(0))
    probs, reach = TagHead(hierarchy=hierarchy).probs_and_reach(logits)
    for k, part in enumerate(probs.split(list(hierarchy.classes_per_hierarchy), 1)):
        yes = logits[:, hierarchy.class_order[hierarchy.slices[k]]].sigmoid()
        torch.testing.assert_close(part, yes / yes.sum(1, keepdim=True))
        torch.testing.assert_close(reach[:, k], yes.amax(1))


def test_a_head_file_with_wrong_names_is_an_error(
    teacher_weights: Path, hierarchy: SemanticHierarchy, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["n99999999", *hierarchy.synsets[1:]]))
    with pytest.raises(TeacherError, match=r"class 'n99999999' of the teacher's head is neither"):
        head_of(teacher_weights, hierarchy, str(names))
    names.write_text("\n".join(hierarchy.synsets[:20]))
    with pytest.raises(ConfigError, match="a classifier of 29 classes found, expected 20"):
        head_of(teacher_weights, hierarchy, str(names))
    names.write_text("\n".join([*hierarchy.synsets[:28], "n01440764"]))  # a tench is no figure
    assert "29 classes of one softmax, 1 of them without a place here" in str(
        head_of(teacher_weights, hierarchy, str(names))
    )


def rows(top: list[list[int]]) -> TargetRows:
    """Predictions with two slots in each of two hierarchies, of which the first is given."""
    index = np.array([[a, 0, b, 0] for a, b in top])
    return TargetRows(
        index=index,
        prob=np.full(index.shape, 0.5),
        confidence=np.ones((len(top), 2)),
        sq_norm=np.ones((len(top), 2)),
        valid=np.array([True] * (len(top) - 1) + [False]),
    )


def test_agreement_is_counted_beside_chance() -> None:
    hierarchy = SemanticHierarchy.from_chains(
        ["a", "b", "c", "d"], {"c": ["a"], "d": ["b"]}, drop_deepest=False
    )
    labels = np.array([0, 1, 2, 3, 3])  # in hierarchy 0: 0 1 0 1, in 1: - - 0 1; the last is bad
    found = agreement_of(rows([[0, 0], [0, 0], [0, 0], [1, 0], [0, 0]]), labels, hierarchy, (2, 2))
    assert found.tagged == (4, 2)
    assert found.agree == (0.75, 0.5)
    assert found.chance == (0.75 * 0.5 + 0.25 * 0.5, 1.0 * 0.5)
    assert found.total == (6, pytest.approx(4 / 6), 0.5)


@pytest.mark.parametrize(
    ("tagged", "agree", "chance", "doubtful"),
    [
        (1000, 0.019, 0.01, True),
        (1000, 0.021, 0.01, False),
        (1000, 0.75, 0.6, True),
        (1000, 0.85, 0.6, False),
        (20, 0.0, 0.01, False),  # too few to say
    ],
)
def test_a_teacher_is_doubted_below_twice_chance(
    tagged: int, agree: float, chance: float, doubtful: bool
) -> None:
    found = TagAgreement(tagged=(tagged,), agree=(agree,), chance=(chance,))
    assert found.is_doubtful == doubtful
    assert (len(found.lines()) == 2) == doubtful


def test_random_weights_are_doubted_and_marked(
    distill: Distill, figures: Path, tmp_path: Path
) -> None:
    command = ["precompute", "--teacher", "test_resnet", "--random-weights", "--input-size", 32]
    command += ["--label-set", "plane-figures", "--data", figures, "--store", tmp_path / "s"]
    ran = distill(*command, "--workers", 0, "--device", "cpu")
    assert "hardly more than chance" in ran.out  # type: ignore[attr-defined]
    shown = distill("store", "info", tmp_path / "s").out  # type: ignore[attr-defined]
    assert "RANDOM WEIGHTS" in shown
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in shown


def test_a_store_is_judged_as_its_teacher_is(
    distill: Distill,
    precompute_command: Callable[..., list[str]],
    teacher_weights: Path,
    figures: Path,
    tmp_path: Path,
) -> None:
    store = tmp_path / "plain"
    assert distill(*precompute_command(store, "--view-policy", "plain")).code == 0  # type: ignore[attr-defined]
    truth = tmp_path / "truth.csv"
    keys = distill("data", "check", "--data", figures, "--label-set", "plane-figures", "--json")
    assert keys.code == 0  # type: ignore[attr-defined]
    words = ["--data", figures, "--split", "train", "--label-set", "plane-figures"]
    words += ["--device", "cpu", "--workers", 0, "--json"]
    ran = distill("evaluate", store, teacher_weights, *words)
    by_store, by_model = json.loads(ran.out).values()  # type: ignore[attr-defined]
    for name in ("semantic_top1", "semantic_top1_per_hierarchy", "semantic_top1_counts", "images"):
        assert by_store[name] == pytest.approx(by_model[name]), name
    assert by_model["classes"] == 29
    assert not truth.exists()
    refused = distill("evaluate", store, *words[:2], "--device", "cpu")
    assert refused.code == 2  # type: ignore[attr-defined]
    assert "holds none of the" in refused.err  # type: ignore[attr-defined]
    assert f"model: {store}: a store of test_vit" in ran.err  # type: ignore[attr-defined]
    assert f"model: {teacher_weights}: logits read as semantic; 32×32" in ran.err  # type: ignore[attr-defined]


def test_a_store_does_not_answer_for_other_images_of_the_same_names(
    fails: Callable[..., str],
    distill: Distill,
    precompute_command: Callable[..., list[str]],
    hierarchy: SemanticHierarchy,
    tmp_path: Path,
) -> None:
    for split in ("train", "val"):
        for wnid in hierarchy.synsets[:2]:
            (tmp_path / "data" / split / wnid).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng([i, len(split)]).integers(0, 256, (32, 32, 3))
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(tmp_path / "data" / split / wnid / f"{i}.png")
    store, data = tmp_path / "store", tmp_path / "data"
    assert distill(*precompute_command(store, data=data)).code == 0  # type: ignore[attr-defined]
    judge = ("evaluate", store, "--data", data, "--device", "cpu", "--workers", 0)
    assert distill(*judge, "--split", "train").code == 0  # type: ignore[attr-defined]
    assert "decode gives other pixels than the teacher saw" in fails(*judge)


def test_a_flat_model_answers_for_a_hierarchy_that_it_was_not_trained_on(
    teacher_weights: Path, hierarchy: SemanticHierarchy, tmp_path: Path
) -> None:
    """As its FlatHead says: here of the very leaves, in another order."""
    leaves = [s for s, inner in zip(hierarchy.synsets, hierarchy.inner, strict=True) if not inner]
    own = SemanticHierarchy.from_chains(leaves[::-1], {}, name="leaves")
    model = create_model("test_vit", len(leaves))
    weights = tmp_path / "w.safetensors"
    import safetensors.torch

    safetensors.torch.save_file(model.state_dict(), weights)
    document = json.loads(teacher_weights.with_suffix(".json").read_text())
    ModelCard.read(teacher_weights)
    card = {**document, "num_classes": len(leaves), "hierarchy_digest": own.digest}
    weights.with_suffix(".json").write_text(json.dumps({**card, "scheme": "single-label"}))
    own.save(tmp_path / "hierarchy.json")
    mapped = open_trained(str(weights)).with_hierarchy(hierarchy)
    assert mapped.scheme == "semantic"
    images = torch.randn(3, 3, 32, 32)
    logits = mapped.model(images)
    head = FlatHead.of(own.synsets, hierarchy, CPU)
    assert isinstance(mapped.model, nn.Module)
    probs, _ = head.probs_and_reach(model.eval()(images))
    found = logits[:, torch.from_numpy(hierarchy.class_order)].exp()
    torch.testing.assert_close(found, probs, atol=1e-6, rtol=1e-4)


def test_binned_average_precision_is_near_the_exact_one() -> None:
    from torchmetrics.functional.classification import multilabel_average_precision

    draw = torch.Generator().manual_seed(1)
    present = torch.rand(4000, 7, generator=draw) < 0.1
    logits = torch.randn(4000, 7, generator=draw) - 6 + 3 * present
    binned = BinnedAveragePrecision(7, CPU)
    for part in range(0, 4000, 512):
        binned.update(logits[part : part + 512].sigmoid(), present[part : part + 512].long())
    for average, value in (("micro", binned.micro()), ("macro", binned.macro())):
        exact = multilabel_average_precision(
            logits.sigmoid(), present.long(), num_labels=7, average=average
        )
        assert value == pytest.approx(exact.item(), abs=5e-3)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("imagenet-1k", 1000),
        ("imagenet-12k", 11821),
        ("imagenet-21k", 21843),
        ("imagenet-22k", 21841),
        ("imagenet-22k-ms", 21842),
    ],
)
def test_imagenets_label_sets_go_by_name(name: str, classes: int) -> None:
    hierarchy = resolve(name)
    assert hierarchy.num_classes == classes
    assert hierarchy.named("tench, Tinca tinca") == ("n01440764",)
    assert hierarchy.named("goldfish, Carassius auratus") == ("n01443537",)


def test_timms_own_weights_are_judged_by_crops() -> None:
    from PIL import Image

    policy = judging_policy("resnet18.a1_in1k")
    assert isinstance(policy, CentreCrop)
    image = Image.new("RGB", (400, 200))
    image.paste((255, 255, 255), (100, 0, 300, 200))
    assert resized(image, policy, (96, 96)).getextrema() == ((255, 255),) * 3
    squished = resized(image, judging_policy("no such model"), (96, 96))
    assert squished.getpixel((0, 0)) == (0, 0, 0)


def test_a_model_whose_size_timm_calls_fixed_is_exported_at_the_size_of_its_training(
    tmp_path: Path,
) -> None:
    import timm

    model = create_model("efficientvit_m0", 3, (64, 64)).eval()
    trained = TrainedModel(
        name="m",
        architecture="efficientvit_m0",
        model=model,
        input=ModelInput(size=(64, 64)),
        num_classes=3,
        hierarchy=None,
        scheme="single-label",
        run={},
    )
    export_folder(trained, tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert loaded.pretrained_cfg["input_size"] == (3, 64, 64)
    torch.testing.assert_close(loaded(images), model(images))


def test_rows_of_a_folder_that_names_its_classes_are_put_in_order(
    teacher_weights: Path, hierarchy: SemanticHierarchy, tmp_path: Path
) -> None:
    """timm's config.json lists label_names; the same classes in another order are the same."""
    import safetensors.torch

    state = safetensors.torch.load_file(teacher_weights)
    mixed = torch.randperm(hierarchy.num_classes, generator=torch.Generator().manual_seed(4))
    heads = {name: state[name][mixed] for name in ("head.weight", "head.bias")}
    safetensors.torch.save_file({**state, **heads}, tmp_path / "model.safetensors")
    document = json.loads(teacher_weights.with_suffix(".json").read_text())
    config = {name: document[name] for name in ("input_size", "mean", "std")}
    names = [hierarchy.synsets[i] for i in mixed.tolist()]
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "test_vit",
                "num_classes": hierarchy.num_classes,
                "label_names": names,
                "pretrained_cfg": config,
            }
        )
    )
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    plain, ordered = (
        load_teacher([MemberChoice(name="test_vit", weights=where)], hierarchy, device=CPU)
        for where in (teacher_weights, tmp_path)
    )
    torch.testing.assert_close(plain.targets([images]).probs, ordered.targets([images]).probs)


def test_a_card_of_another_model_is_an_error(
    teacher_weights: Path, hierarchy: SemanticHierarchy, tmp_path: Path
) -> None:
    other = as_trained(teacher_weights, tmp_path / "a", model="test_resnet")
    with pytest.raises(ConfigError, match="its card says model test_resnet, expected test_vit"):
        head_of(other, hierarchy)
