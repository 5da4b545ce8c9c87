"""Do our reassessed labels agree with the published ones?

    python benchmarks/real_labels.py FOLDER

FOLDER holds raters.npz, scores.npz, golden.npz and real.json of
github.com/google-research/reassessed-imagenet.
From the raters' answers we compute scores with each way of counting "maybe", and compare them with
the published scores and labels: of questions, and of images whose whole set of labels is the same.
The second row is what `distill data real-labels from-raters` does. Then both scores against what
the authors themselves see in 155 of the images. With ILSVRC's own labels beside them, as
labels.txt (a wnid a line, in the order of the images), also what they change as one more rater
(`--tags`), and which classes are ambiguous, and with
timm's results-imagenet.csv and results-imagenet-real.csv how accuracy by labels and by reassessed
ones go together, below and above 80%.

A minute, no GPU. Takes --quick, which is the same. Prints a table in Markdown, and as its last line
one JSON object of the figures.
"""

import argparse
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.curate.real_labels import (
    MAYBE,
    NO,
    THRESHOLD,
    YES,
    RaterAnswers,
    against_gold,
    labels_by_key,
    read_gold,
    read_labels,
    read_raters,
    scores,
    with_tags_of_animals,
)
from distill.curate.real_study import StudiedLabels, classes_of, fitted
from distill.hierarchy.hypernyms import flat_label_set, label_names


def counted(answers: RaterAnswers, maybe: int | None) -> RaterAnswers:
    """With "maybe" as another answer; left out where that is None."""
    if maybe is None:
        kept = answers.answers != MAYBE
        return replace(
            answers,
            questions=answers.questions[kept],
            raters=answers.raters[kept],
            answers=answers.answers[kept],
        )
    return replace(answers, answers=np.where(answers.answers == MAYBE, maybe, answers.answers))


def compared(
    answers: RaterAnswers,
    scored: NDArray[np.float64],
    published: NDArray[np.float64],
    real: dict[str, list[str | int]],
    threshold: float = THRESHOLD,
) -> dict[str, float]:
    """Correlation, and agreement with real.json."""
    scored = np.nan_to_num(scored)
    mine = labels_by_key(answers, scored, threshold)
    right = [label in real[key] for key, label in zip(answers.keys, answers.labels, strict=True)]
    return {
        "correlation": float(np.corrcoef(scored, published)[0, 1]),
        "questions": float(((scored > threshold) == np.array(right)).mean()),
        "images": float(np.mean([{*labels} == {*real[key]} for key, labels in mine.items()])),
    }


def _tags(folder: Path) -> list[int]:
    """ILSVRC's own labels, in the order of the images."""
    index = {wnid: c for c, wnid in enumerate(flat_label_set("imagenet-1k"))}
    return [index[wnid] for wnid in (folder / "labels.txt").read_text().split()]


def _classes(folder: Path, real: dict[str, list[str | int]]) -> dict[str, dict[str, float]]:
    """What an oracle is left with that knows all labels of an image."""
    if not (folder / "labels.txt").exists():
        return {}
    classes, names = flat_label_set("imagenet-1k"), label_names("imagenet-1k")
    tags = np.array(_tags(folder))
    labels = StudiedLabels(tags=tags, real=[frozenset(map(int, each)) for each in real.values()])
    found = classes_of(labels)
    below = {f"below {t}": float(sum(each.oracle < t for each in found)) for t in (0.8, 0.9, 0.95)}
    print("\n## The most ambiguous classes\n")
    print("| class | oracle % | together with |\n| --- | ---: | --- |")
    for each in found[:10]:
        beside = ", ".join(f"{names[classes[c]]} {100 * share:.0f}%" for c, share in each.together)
        print(f"| {names[classes[each.c]]} | {100 * each.oracle:.1f} | {beside} |")
    print("\nClasses whose oracle is " + ", ".join(f"{t}: {n:.0f}" for t, n in below.items()))
    return {"oracle": {names[classes[found[0].c]]: found[0].oracle, **below}}


def _progress(folder: Path) -> dict[str, dict[str, float]]:
    """Of timm's models."""
    if not (folder / "results-imagenet-real.csv").exists():
        return {}
    accuracy = []
    for name in ("results-imagenet.csv", "results-imagenet-real.csv"):
        with (folder / name).open() as file:
            rows = csv.DictReader(file)
            accuracy.append({(r["model"], r["img_size"]): float(r["top1"]) / 100 for r in rows})
    points = [(accuracy[0][key], accuracy[1][key]) for key in accuracy[0] if key in accuracy[1]]
    groups = {
        "below 80%": [point for point in points if point[0] < 0.8],
        "above": [point for point in points if point[0] >= 0.8],
    }
    lines = {name: fitted(some) for name, some in groups.items()}
    print("\n## ReaL accuracy by accuracy, timm's models\n")
    print("| accuracy | models | slope |\n| --- | ---: | ---: |")
    for name, line in lines.items():
        print(f"| {name} | {line.models} | {line.slope:.3f} ± {line.error:.3f} |")
    print()
    return {f"slope {name}": {"slope": line.slope} for name, line in lines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    folder = parser.parse_args().folder
    answers = read_raters(folder / "raters.npz")
    real = read_labels(folder / "real.json")
    with np.load(folder / "scores.npz") as archive:
        published = archive["tensor"]
    ways = {
        "an answer, and half a yes in the score (ours)": answers,
        "yes": counted(answers, YES),
        "no": counted(answers, NO),
        "left out": counted(answers, None),
    }
    found = {way: scores(each) for way, each in ways.items()}
    own = next(iter(found.values()))
    if (folder / "labels.txt").exists():
        tags = {key: [tag] for key, tag in zip(real, _tags(folder), strict=True)}
        with_tags = with_tags_of_animals(answers, tags)
        found["an answer, and tags say of animals what they are (--tags)"] = scores(with_tags)
    figures = {
        "the published scores themselves, above 0.8": compared(
            answers, published, published, real, 0.8
        ),
        **{
            f"maybe is {way}": compared(answers, scored, published, real)
            for way, scored in found.items()
        },
    }
    print("# Reassessed labels of ImageNet-1K's validation images\n")
    print(f"{len(answers.keys):,} questions, {len({*answers.keys}):,} images rated\n")
    print("| scores | correlation | same decision, % of questions | same labels, % of images |")
    print("| --- | ---: | ---: | ---: |")
    for name, row in figures.items():
        shares = " | ".join(f"{100 * row[each]:.1f}" for each in ("questions", "images"))
        print(f"| {name} | {row['correlation']:.3f} | {shares} |")
    print("\n## Against experts\n")
    print("| scores | threshold | precision % | recall % | average precision |")
    print("| --- | ---: | ---: | ---: | ---: |")
    gold = read_gold(folder / "golden.npz")
    for name, scored, threshold in (("published", published, 0.8), ("ours", own, THRESHOLD)):
        curve = against_gold(answers, scored, gold)
        precision, recall = curve.at(threshold)
        row = {"precision": precision, "recall": recall, "average": curve.average_precision}
        figures[f"experts, {name}"] = row
        shares = f"{100 * precision:.1f} | {100 * recall:.1f} | {curve.average_precision:.3f}"
        print(f"| {name} | {threshold} | {shares} |")
    figures |= _classes(folder, real) | _progress(folder)
    print(
        json.dumps(
            {name: {k: round(v, 4) for k, v in row.items()} for name, row in figures.items()}
        )
    )


if __name__ == "__main__":
    main()
