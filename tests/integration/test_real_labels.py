"""Reassessed labels: proposals of models, answers of raters, accuracy by what comes of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import write_folder
from small_models import write_test_vit

from distill.curate.real_labels import (
    NO,
    YES,
    RaterAnswers,
    labels_by_key,
    read_labels,
    read_raters,
    scores,
    write_labels,
)
from distill.errors import DataError
from distill.hierarchy.semantic import SemanticHierarchy
from distill.models.creation import create_model

MACHINE = ("--device", "cpu", "--workers", 0)


def constant_model(folder: Path, hierarchy: SemanticHierarchy, order: list[int]) -> Path:
    """One whose answers are those classes, best first, whatever it sees."""
    folder.mkdir()
    torch.manual_seed(0)
    state = create_model("test_vit", hierarchy.num_classes).state_dict()
    state["head.weight"].zero_()
    state["head.bias"].fill_(-9)
    for place, c in enumerate(order):
        state["head.bias"][c] = 8.0 - place
    write_test_vit(folder / "student.safetensors", state, hierarchy)
    hierarchy.save(folder / "hierarchy.json")
    return folder


def crowd(random: np.random.Generator, truth: np.ndarray, error: list[float]) -> RaterAnswers:
    """Each rater answers every question and is wrong with its own probability."""
    raters, questions = np.meshgrid(np.arange(len(error)), np.arange(len(truth)), indexing="ij")
    wrong = random.random(raters.shape) < np.array(error)[:, None]
    said = np.where(truth[None] ^ wrong, YES, NO)
    keys = tuple(f"i{q // 3}" for q in range(len(truth)))
    labels = tuple(q % 3 for q in range(len(truth)))
    return RaterAnswers("", keys, labels, questions.ravel(), raters.ravel(), said.ravel())


def test_dawid_skene_trusts_careful_raters_more_than_the_majority(
    random: np.random.Generator,
) -> None:
    truth = random.random(300) < 0.3
    answers = crowd(random, truth, [0.02, 0.02, 0.45, 0.45, 0.45])
    votes = np.zeros(300)
    np.add.at(votes, answers.questions, answers.answers == YES)
    majority = ((votes > 2.5) == truth).mean()
    weighed = ((scores(answers) > 0.5) == truth).mean()
    assert majority < 0.93
    assert weighed > 0.95


def test_labels_are_the_scores_above_the_threshold_and_may_be_none() -> None:
    none = np.zeros(0, np.int64)
    answers = RaterAnswers("", ("a", "a", "b", "c"), (1, "n2", 3, 4), none, none, none)
    scored = np.array([0.9, 0.51, 0.5, np.nan])
    assert labels_by_key(answers, scored) == {"a": [1, "n2"], "b": [], "c": []}


def write_csv(path: Path, rows: list[list[object]], head: str = "rater,key,label,answer") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head.split(","), *rows])
    return path


def test_published_form_and_csv_are_the_same_answers(tmp_path: Path) -> None:
    tensor = np.zeros((2, 3, 3))
    tensor[0, 0, 2] = tensor[0, 1, 0] = tensor[1, 1, 1] = tensor[1, 2, 2] = 1
    names = ["ILSVRC2012_val_00000001.JPEG"] * 2 + ["ILSVRC2012_val_00000002.JPEG"]
    info = np.array([[name, str(c)] for name, c in zip(names, (5, 6, 5), strict=True)])
    np.savez(tmp_path / "raters.npz", tensor=tensor, info=info, ids=np.array([7, 9]))
    rows: list[list[object]] = [
        [7, names[0][:-5], 5, "yes"],
        [7, names[0][:-5], 6, "no"],
        [9, names[0][:-5], 6, "Maybe"],
        [9, names[2][:-5], 5, "yes"],
    ]
    a = read_raters(tmp_path / "raters.npz")
    b = read_raters(write_csv(tmp_path / "raters.csv", rows))
    assert (a.keys, a.labels) == (b.keys, b.labels)
    said = [set(zip(x.questions, x.raters, x.answers, strict=True)) for x in (a, b)]
    assert said[0] == said[1]
    assert np.allclose(scores(a), scores(b))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npz", b""),
        ("x.npz", b"PK\x03\x04 and no more"),
        ("x.csv", b"rater,key,label,answer\n1,a,2,perhaps\n"),
        ("x.csv", b"who,what\n1,2\n"),
        ("x.csv", b"rater,key,label,answer\n"),
        ("x.csv", b"\xff\xfe\x00"),
    ],
)
def test_wrong_rater_files_are_one_line(name: str, content: bytes, tmp_path: Path, fails) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(content)
    command = ("data", "real-labels", "from-raters", tmp_path / name, "--out", tmp_path / "o.json")
    assert "expected" in fails(*command)


def test_a_tensor_of_other_questions_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", tensor=np.zeros((2, 3, 3)), info=np.array([["a", "1"]]))
    with pytest.raises(DataError, match=r"tensor \(2, 3, 3\) and info \(1, 2\) found"):
        read_raters(tmp_path / "x.npz")


def test_label_files_of_both_forms(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.json", {"b": [1], "a": ["n1", 2], "c": []})
    assert read_labels(tmp_path / "a.json") == {"a": ["n1", 2], "b": [1], "c": []}
    (tmp_path / "b.json").write_text("[[], [3, 4]]")
    assert read_labels(tmp_path / "b.json") == {
        "ILSVRC2012_val_00000001": [],
        "ILSVRC2012_val_00000002": [3, 4],
    }
    for bad in ("{}", "[1]", "x", '{"format": "distill-real-labels/1", "labels": {"a": 1}}'):
        (tmp_path / "c.json").write_text(bad)
        with pytest.raises(DataError, match="cannot be read as reassessed labels"):
            read_labels(tmp_path / "c.json")


def test_from_proposals_over_raters_to_accuracy(
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
) -> None:
    """Two models that answer classes 0 1 2 and 1 0 3; images tagged 0 and 5."""
    hierarchy = SemanticHierarchy.from_chains([f"c{i}" for i in range(8)], {})
    tags = [hierarchy.synsets[c] for c in (0, 5)]
    write_folder(tmp_path / "data" / "val", tuple(tags), images=2)
    models = [
        constant_model(tmp_path / name, hierarchy, order)
        for name, order in (("a", [0, 1, 2]), ("b", [1, 0, 3]))
    ]
    command = ("data", "real-labels", "propose", *models, "--data", tmp_path / "data", *MACHINE)
    common = ("--per-image", 2, "--out", tmp_path / "rate")
    report = json.loads(distill(*command, *common, "--json").out)
    assert (report["images"], report["to_rate"], report["agreed"]) == (4, 4, 0)
    with (tmp_path / "rate" / "questions.csv").open() as file:
        questions = [*csv.DictReader(file)]
    proposed = {
        (row["key"], hierarchy.index(row["label"])): row["proposed_by"] for row in questions
    }
    of_tagged = {c for key, c in proposed if key.startswith(tags[1])}
    assert {0, 1, 5} <= of_tagged
    assert proposed[questions[0]["key"], 0] in ("a;b", "b;a")
    assert {by for (_, c), by in proposed.items() if c == 5} == {""}

    alone = json.loads(distill(*command[:3], models[0], *command[5:], *common, "--json").out)
    assert (alone["agreed"], alone["to_rate"]) == (2, 2)

    # Class 1 is there in all images, class 0 in none; what is tagged 5 has that as well.
    right = lambda c: c in (1, 5)  # noqa: E731
    answers = [
        [rater, row["key"], row["label"], "yes" if right(hierarchy.index(row["label"])) else "no"]
        for row in questions
        for rater in range(3)
    ]
    write_csv(tmp_path / "answers.csv", answers)
    ran = distill(
        *("data", "real-labels", "from-raters", tmp_path / "answers.csv"),
        *("--out", tmp_path / "real.json", "--scores", tmp_path / "scores.csv"),
    )
    assert ran.code == 0, ran.err
    assert "4 images" in ran.out
    labels = read_labels(tmp_path / "real.json")
    assert labels[f"{tags[1]}/{tags[1]}_0"] == [hierarchy.synsets[1], hierarchy.synsets[5]]
    assert (tmp_path / "scores.csv").read_text().count("\n") == len(questions) + 1

    judge = ("evaluate", *models, "--data", tmp_path / "data", *MACHINE, "--scheme", "single-label")
    found = json.loads(distill(*judge, "--labels", tmp_path / "real.json", "--json").out)
    figures = {Path(name).name: row["real_top1"] for name, row in found.items()}
    assert figures == {"a": 0.0, "b": 1.0}
    assert found[str(models[0])]["real_images"] == 4

    write_labels(tmp_path / "other.json", {"elsewhere": [0]})
    assert "none of its 4 images" in fails(*judge, "--labels", tmp_path / "other.json")
    write_labels(tmp_path / "other.json", {f"{tags[0]}_0": ["n1"]})
    assert "reassessed label 'n1' found" in fails(*judge, "--labels", tmp_path / "other.json")


def test_agreed_images_keep_their_label(tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    write_csv(tmp_path / "answers.csv", [[1, "a", 3, "yes"], [2, "a", 3, "yes"], [1, "b", 4, "no"]])
    write_csv(tmp_path / "agreed.csv", [["c", 9, "x"]], "key,label,name")
    ran = distill(
        *("data", "real-labels", "from-raters", tmp_path / "answers.csv", "--json"),
        *("--agreed", tmp_path / "agreed.csv", "--out", tmp_path / "real.json"),
    )
    assert json.loads(ran.out) == {
        "images_rated": 2,
        "questions": 2,
        "labels": 1,
        "without_label": 1,
        "images": 3,
    }
    assert read_labels(tmp_path / "real.json") == {"a": [3], "b": [], "c": [9]}


def test_models_of_other_classes_are_one_line(
    tmp_path: Path,
    fails,
    hierarchy: SemanticHierarchy,  # type: ignore[no-untyped-def]
) -> None:
    write_folder(tmp_path / "data" / "val", (hierarchy.synsets[0],))
    few = SemanticHierarchy.from_chains(["a", "b"], {})
    models = [constant_model(tmp_path / n, h, [0]) for n, h in (("x", hierarchy), ("y", few))]
    command = ("data", "real-labels", "propose", *models, "--data", tmp_path / "data", *MACHINE)
    assert "2 classes found, expected those of plane-figures" in fails(*command, "--out", tmp_path)


def test_a_semantic_model_answers_below_the_ancestors_of_its_answer(
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
    hierarchy: SemanticHierarchy,
) -> None:
    """An ancestor is never less probable, so among all classes it would always be the answer."""
    leaf = int(np.flatnonzero(hierarchy.levels == 2)[0])
    synset = hierarchy.synsets[leaf]
    above = [hierarchy.index(each) for each in hierarchy.ancestors(synset)]
    model = constant_model(tmp_path / "model", hierarchy, [leaf, *above])
    write_folder(tmp_path / "data" / "val", (synset,), images=3)
    write_labels(tmp_path / "own.json", {f"{synset}_{i}": [synset] for i in range(3)})
    common = ("--data", tmp_path / "data", "--scheme", "semantic", "--json", *MACHINE)
    judged = distill("evaluate", model, "--labels", tmp_path / "own.json", *common)
    assert json.loads(judged.out)[str(model)]["real_top1"] == 1.0
    command = ("data", "real-labels", "propose", model, "--out", tmp_path / "rate", *common)
    assert json.loads(distill(*command).out)["agreed"] == 3
