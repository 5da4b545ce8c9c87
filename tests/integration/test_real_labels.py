"""Reassessed labels: proposals of models, answers of raters, accuracy by what comes of them."""

import csv
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import write_folder
from small_models import write_test_vit

from distill.curate.proposals import ModelPredictions, Pool, in_questions
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


def tagged_images(folder: Path) -> tuple[SemanticHierarchy, list[str]]:
    """Eight classes, and two images of each of the two that are tags."""
    hierarchy = SemanticHierarchy.from_chains([f"c{i}" for i in range(8)], {})
    tags = [hierarchy.synsets[c] for c in (0, 5)]
    write_folder(folder / "data" / "val", tuple(tags), images=2)
    return hierarchy, tags


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
    hierarchy, tags = tagged_images(tmp_path)
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


def test_tags_say_of_animals_what_raters_cannot_tell(
    tmp_path: Path,
    distill,
    fails,  # type: ignore[no-untyped-def]
) -> None:
    """Of animals alone, in images that are tagged as one: two say yes, two no, one maybe."""
    tabby, tiger_cat, desk, desktop = 281, 282, "n03179701", "n03180011"
    votes = ("yes", "yes", "no", "no", "maybe")
    rows = ["rater,key,label,answer"]
    for i in range(20):
        for label in (tabby, tiger_cat) if i % 2 else (desk, desktop):
            rows += [f"r{r},image{i},{label},{vote}" for r, vote in enumerate(votes)]
    (tmp_path / "answers.csv").write_text("\n".join(rows))
    tags = [f"image{i},{tabby if i % 2 else desk}" for i in range(20)]
    (tmp_path / "tags.csv").write_text("\n".join(["key,label", *tags]))
    words = ("data", "real-labels", "from-raters", tmp_path / "answers.csv")
    words += ("--out", tmp_path / "real.json")
    assert distill(*words).code == 0
    without = read_labels(tmp_path / "real.json")
    ran = distill(*words, "--tags", tmp_path / "tags.csv")
    assert ran.code == 0, ran.err
    assert "that 5 raters saw" in ran.out
    decided = read_labels(tmp_path / "real.json")
    for i in range(20):
        if i % 2:
            assert decided[f"image{i}"] == [tabby]
        else:
            assert decided[f"image{i}"] in (without[f"image{i}"], [], [desk, desktop])
    (tmp_path / "tags.csv").write_text(f"key,label\nimage0,{desk}\n")
    said = fails(*words, "--tags", tmp_path / "tags.csv")
    assert "no question about an animal in an image that is tagged as one" in said


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


# -- the fewest models ----------------------------------------------------------------------------


def predictions(random: np.random.Generator, name: str, rows: int = 40) -> ModelPredictions:
    """Best first."""
    classes = np.argsort(random.random((rows, 12)), 1)[:, :6]
    values = -np.sort(-random.random((rows, 6)).astype(np.float32), 1)
    return ModelPredictions(
        model=name,
        classes=classes,
        scores=values * random.uniform(1, 9),
        probs=values * random.random((rows, 1)).astype(np.float32),
        seen=random.random(rows) > 0.05,
    )


def simply_proposed(
    models: list[ModelPredictions], labels: np.ndarray, per_image: float
) -> tuple[dict[int, set[int]], set[int]]:
    """As the docstring of the module says it, one model, image and class at a time."""
    votes: dict[tuple[int, int], int] = {}
    count = int(per_image * len(labels))
    for model in models:
        cast = [(row, 0) for row in range(len(labels)) if model.seen[row]]
        for values in (model.scores, model.probs):
            ranked = sorted(
                (-values[row, i], row, i)
                for row in range(len(labels))
                for i in range(values.shape[1])
                if model.seen[row]
            )
            cast += [(row, i) for _, row, i in ranked[:count]]
        for row, i in cast:
            pair = row, int(model.classes[row, i])
            votes[pair] = votes.get(pair, 0) + 1
    agreed = {
        row
        for row, label in enumerate(labels)
        if all(model.seen[row] and model.classes[row, 0] == label for model in models)
    }
    found: dict[int, set[int]] = {}
    for row, label in enumerate(labels):
        kept = {c for (r, c), times in votes.items() if r == row and times > 1}
        kept |= {int(label)} if label >= 0 else set()
        if row in agreed:
            kept = {int(label)}
        if kept:
            found[row] = kept
    return found, agreed


def test_pool_is_what_its_definition_says(random: np.random.Generator) -> None:
    models = [predictions(random, name) for name in "abc"]
    labels = np.where(random.random(40) < 0.8, models[0].classes[:, 0], -1)
    for model in models[1:]:  # often of one mind
        model.classes[:30, 0] = models[0].classes[:30, 0]
    pool = Pool.of(models, labels, per_image=1.5)
    for chosen in ("abc", "b", "ac"):
        proposals = pool.only(tuple(chosen)).proposals()
        some = [model for model in models if model.model in chosen]
        expected, agreed = simply_proposed(some, labels, 1.5)
        assert {*proposals.agreed} == agreed
        found = {row: {*classes} for row, classes in proposals.by_row.items()}
        assert found == {row: each for row, each in expected.items() if row not in agreed}


def test_fewest_models_that_find_enough_of_what_experts_see(random: np.random.Generator) -> None:
    models = [predictions(random, name) for name in "abcd"]
    labels = models[0].classes[:, 0].copy()
    pool = Pool.of(models, labels, per_image=2)
    gold = {row: random.choice(12, 2, replace=False).tolist() for row in range(0, 40, 2)}
    figures = {}
    for size in range(1, 5):
        for chosen in combinations("abcd", size):
            found, _ = simply_proposed([m for m in models if m.model in chosen], labels, 2)
            hits = sum(c in found.get(row, ()) for row, classes in gold.items() for c in classes)
            proposed = sum(len(found.get(row, ())) for row in gold)
            figures[chosen] = hits / 40, hits / proposed
    most = figures["a", "b", "c", "d"][0]
    for recall in (most, most * 0.8, most * 0.5, 0.0):
        best = pool.smallest(gold, recall)
        fit = [chosen for chosen in figures if figures[chosen][0] >= recall]
        fewest = min(map(len, fit))
        expected = max((c for c in fit if len(c) == fewest), key=lambda c: figures[c][1])
        assert best.models == expected
        assert (best.recall, best.precision) == pytest.approx(figures[expected])
    with pytest.raises(DataError, match="add models"):
        pool.smallest(gold, 1.0)


def test_questions_keep_what_wordnet_has_together() -> None:
    dogs = ["n02085620", "n02113799", "n02099601", "n02106662", "n02108915"]
    cars = ["n02814533", "n03100240", "n04285008", "n03977966", "n02701002"]
    synsets = [synset for pair in zip(dogs, cars, strict=True) for synset in pair]
    hierarchy = SemanticHierarchy.from_chains(synsets, {})
    parts = in_questions(range(10), hierarchy)
    assert [len(part) for part in parts] == [5, 5]
    assert [{synsets[c] for c in part} for part in parts] in (
        [{*dogs}, {*cars}],
        [{*cars}, {*dogs}],
    )


def test_what_experts_see_chooses_models_and_judges_labels(
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
) -> None:
    hierarchy, tags = tagged_images(tmp_path)
    models = [
        constant_model(tmp_path / name, hierarchy, order)
        for name, order in (("a", [0, 6, 7]), ("b", [1, 2, 3]), ("c", [2, 1, 3]))
    ]
    keys = [f"{tag}_{i}" for tag in tags for i in range(2)]
    experts = [[rater, key, "c1", "yes"] for rater in range(3) for key in keys]
    experts += [[rater, key, "c6", "no"] for rater in range(3) for key in keys]
    gold = write_csv(tmp_path / "gold.csv", experts)
    command = ("data", "real-labels", "propose", *models, "--data", tmp_path / "data", *MACHINE)
    common = ("--per-image", 2, "--out", tmp_path / "rate", "--gold", gold)
    report = json.loads(distill(*command, *common, "--json").out)
    assert report["models"] == ["b"]
    # Of each image: its tag, and the two classes of b, one of them right.
    assert report["gold"] == {"recall": 1.0, "precision": pytest.approx(1 / 3)}
    assert report["unreadable"] == 0
    write_labels(tmp_path / "gold.json", {key: ["c7", "c3"] for key in keys})
    more = ("--gold", tmp_path / "gold.json")
    assert "add models, or raise --per-image" in fails(*command, *common, *more)
    answers = [[0, key, "c1", "yes"] for key in keys] + [[0, keys[0], "c6", "yes"]]
    rated = write_csv(tmp_path / "answers.csv", answers)
    decide = ("data", "real-labels", "from-raters", rated, "--out", tmp_path / "real.json")
    judged = json.loads(distill(*decide, "--gold", gold, "--json").out)["gold"]
    assert judged["labels"] == 5
    assert judged["recall"] == 1
    assert judged["precision"] == pytest.approx(4 / 5)
    ran = distill(*decide, "--gold", gold, "--curve", tmp_path / "curve.csv")
    assert "precision 80.0%, recall 100.0% above 0.5" in ran.out
    assert (tmp_path / "curve.csv").read_text().startswith("threshold,precision,recall\n")
    assert "--curve found without --gold" in fails(*decide, "--curve", tmp_path / "curve.csv")
    write_labels(tmp_path / "gold.json", {"elsewhere": ["c1"]})
    assert "expected answers about the same images" in fails(
        *decide, "--gold", tmp_path / "gold.json"
    )


def test_a_study_of_models_and_their_files(
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
    fails,  # type: ignore[no-untyped-def]
) -> None:
    hierarchy, tags = tagged_images(tmp_path)
    hierarchy.save(tmp_path / "labels.json")
    models = [
        constant_model(tmp_path / name, hierarchy, order)
        for name, order in (("a", [0, 5, 7]), ("b", [1, 5, 3]))
    ]
    keys = [f"{tag}_{i}" for tag in tags for i in range(2)]
    real = dict(zip(keys, (["c0"], ["c0", "c5"], ["c5"], []), strict=True))
    write_labels(tmp_path / "real.json", real)
    command = ("data", "real-labels", "study", *models, "--data", tmp_path / "data", *MACHINE)
    common = ("--labels", tmp_path / "real.json", "--out", tmp_path / "study")
    ran = distill(*command, *common, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["images"], found["discarded"], found["mistakes"]) == (4, 1, 1)
    assert found["models"]["a"]["accuracy"] == 0.5
    assert found["models"]["a"]["real_accuracy"] == pytest.approx(2 / 3)
    assert found["models"]["b"]["further"][:2] == [0.0, 1.0]
    assert found["progress"] is None
    assert [each["label"] for each in found["classes"]] == ["c0", "c5"]
    assert found["classes"][0]["oracle"] == 0.75
    questions = [*csv.DictReader((tmp_path / "study/questions.csv").read_text().splitlines())]
    assert {(row["label"], row["proposed_by"]) for row in questions} == {
        ("c0", "a"),
        ("c1", "b"),
        ("c5", ""),
    }
    files = [tmp_path / "study/predictions" / f"{name}.csv" for name in "ab"]
    words = ("data", "real-labels", "study", *files, "--data", tmp_path / "data", *common[:2])
    more = ("--label-set", tmp_path / "labels.json", "--out", tmp_path / "again")
    again = distill(*words, *more, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["models"] == found["models"]
    for name in ("models.csv", "classes.csv", "questions.csv"):
        content = (tmp_path / "study" / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == content
    shown = distill(*command, *common).out
    assert "1 without a reassessed label" in shown
    assert "no model is right about 1 images" in shown
    assert "at least 3 of different" in fails(*command, *common, "--earlier", 1)
    assert "two models are called a" in fails(*command[:4], models[0], *command[5:], *common)


def test_classes_that_are_called_by_numbers_go_by_their_names(
    tmp_path: Path,
    distill,  # type: ignore[no-untyped-def]
) -> None:
    names = ("10", "2", "0")
    write_folder(tmp_path / "data" / "val", names, images=2)
    (tmp_path / "labels.json").write_text(json.dumps({"parents": dict.fromkeys(names)}))
    keys = [(f"{name}/{name}_{i}", name) for name in names for i in range(2)]
    predictions = "key,first\n" + "".join(f"{key},{name}\n" for key, name in keys)
    (tmp_path / "right.csv").write_text(predictions)
    answers = write_csv(tmp_path / "answers.csv", [[0, key, name, "yes"] for key, name in keys])
    decided = ("data", "real-labels", "from-raters", answers, "--out", tmp_path / "real.json")
    assert distill(*decided).code == 0
    words = ("data", "real-labels", "study", tmp_path / "right.csv", "--data", tmp_path / "data")
    more = ("--label-set", tmp_path / "labels.json", "--labels", tmp_path / "real.json")
    found = json.loads(distill(*words, *more, "--out", tmp_path / "study", "--json").out)
    assert found["models"]["right"]["accuracy"] == found["models"]["right"]["real_accuracy"] == 1


def test_labels_that_experts_do_not_list_are_not_there(tmp_path: Path, distill) -> None:  # type: ignore[no-untyped-def]
    rows = [[r, "a", f"n{i}", "yes"] for i in range(3) for r in range(3)]
    answers = write_csv(tmp_path / "answers.csv", rows)
    write_labels(tmp_path / "gold.json", {"a": ["n0", "n9"], "other": ["n1"]})
    ran = distill(
        *("data", "real-labels", "from-raters", answers, "--out", tmp_path / "real.json"),
        *("--gold", tmp_path / "gold.json", "--json"),
    )
    judged = json.loads(ran.out)["gold"]
    assert judged["precision"] == pytest.approx(1 / 3)
    assert judged["recall"] == 0.5  # nobody was asked about n9


def test_odd_rows_and_places_are_one_line(
    tmp_path: Path,
    fails,  # type: ignore[no-untyped-def]
    hierarchy: SemanticHierarchy,
) -> None:
    decide = ("data", "real-labels", "from-raters", tmp_path / "a.csv", "--out")
    for row in (",,,yes", "1,a,,yes", "1"):
        (tmp_path / "a.csv").write_text(f"rater,key,label,answer\n{row}\n")
        assert "line 2 has an empty field" in fails(*decide, tmp_path / "real.json")
    (tmp_path / "a.csv").write_text("rater,key,label,answer\n1,a,n1,yes\n")
    assert "Is a directory" in fails(*decide, ".")
    write_csv(tmp_path / "agreed.csv", [["a", "", "x"]], "key,label,name")
    agreed = ("--agreed", tmp_path / "agreed.csv")
    assert "a row without key or label" in fails(*decide, tmp_path / "real.json", *agreed)
    write_folder(tmp_path / "data" / "val", (hierarchy.synsets[0],))
    models = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        models.append(constant_model(tmp_path / folder / "run", hierarchy, [0]))
    propose = ("data", "real-labels", "propose", *models, "--data", tmp_path / "data", *MACHINE)
    assert "expected different names" in fails(*propose, "--out", tmp_path / "out")
