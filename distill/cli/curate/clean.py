"""`distill data clean`: tags of a data set, judged by teachers that never saw the image."""

from functools import partial
from pathlib import Path
from typing import Any

import click

from distill.cli.options import common
from distill.cli.options.command import FILE, adapt, command, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.recipes import RecipeChoice, recipe_options, recipe_settings, run_folder
from distill.cli.options.thresholds import thresholds
from distill.cli.output import print_result, truth_lines
from distill.cli.signals import finish_on_signal
from distill.models.names import WITHOUT_FILE

LISTS = "suspect.csv", "missing.csv", "cleaned.csv"


@command(
    nested=recipe_settings,
    examples=[
        "--student resnet18 --data DATA --out CLEAN",
        "--student resnet18 --data DATA --folds 4 --truth truth.csv --out CLEAN",
    ],
)
@adapt("--limit", "--kd-weight", "--divergence")
@recipe_options
@data_options(split="train", clips=True)
@common.label_set()
@option("--folds", type=click.IntRange(2, 1000), default=10, help="Number of folds.")
@setting("--truth", type=FILE, help="CSV with key and true_wnid, to score the lists.")
@common.max_bad_fraction
@thresholds
@run_folder
@setting(
    "--jobs",
    type=click.IntRange(1),
    show_default="one a GPU, or a core",
    help="Folds at a time.",
    section="Machine",
)
@common.limit
@common.machine
@common.as_json
def clean(
    recipe_choice: RecipeChoice,
    data: DataChoice,
    label_set: str,
    folds: int,
    truth: Path | None,
    max_bad_fraction: float,
    thresholds: dict[str, float],
    out: Path,
    jobs: int | None,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """List wrong and missing tags of DATA by teachers that did not train on the image.

    For each fold a teacher is trained on the others and judges the tags of this one. Writes
    suspect.csv, missing.csv, and cleaned.csv, all images but the suspect ones, for `distill
    pretrain --samples`. Run the same command again to resume.
    """
    recipe = recipe_choice.read(**recipe_choice.input_of_init(out))
    from distill.data.truth import read_truth
    from distill.files import sole_writer
    from distill.hierarchy.semantic import resolve
    from distill.out_of_fold import FoldWork, judge_folds, judged_images, require_unseen
    from distill.teacher_server.inspect.findings import Rules
    from distill.teacher_server.inspect.tag_lists import (
        score_missing,
        score_suspect,
        write_cleaned,
        write_missing,
        write_suspect,
    )
    from distill.trainers.training.optimizer import require_optimizer

    require_optimizer(recipe)
    rules, hierarchy = Rules(**thresholds), resolve(label_set)
    source = data.open().limited(limit)
    known = read_truth(truth, source, hierarchy) if truth else None
    devices, most = common.spread(jobs, device)
    at_once = min(folds, most)
    require_unseen(recipe.init, source, hierarchy)
    works = [
        FoldWork(
            fold=fold,
            folds=folds,
            location=data.location,
            split=data.split,
            columns=data.columns,
            frames=data.frames,
            limit=limit,
            hierarchy=hierarchy,
            recipe=recipe,
            out=str(out),
            devices=tuple(devices),
            threads=max(1, common.CORES // at_once),
            workers=workers // at_once,
            max_bad_fraction=max_bad_fraction,
        )
        for fold in range(folds)
    ]
    say = partial(click.echo, err=True)
    say(f"model: {recipe.student} at {recipe.image_size} pixels, {at_once} folds at a time")
    with (
        finish_on_signal("clean", "the step of each fold under way") as stop,
        sole_writer(out, cure="wait for it, stop it, or choose another --out", say=say),
    ):
        if not judge_folds(works, source, jobs=at_once, stop=stop, say=say):
            stop.end()
    unseen = "that never saw them"
    if recipe.init not in WITHOUT_FILE:
        unseen = f"that were not trained on them here; whether {recipe.init} was, nobody asked"
    listed = list(judged_images(works, source, rules))
    suspect, missing, cleaned = (out / name for name in LISTS)
    write_suspect(suspect, *listed)
    write_missing(missing, *listed)
    kept, _, left_out = write_cleaned(cleaned, *listed, missing=False, suspect=True)
    tags = [images.inspection.tags for images in listed]
    judged, lacking = sum(each.judged for each in tags), sum(len(each.missing) for each in tags)
    document: dict[str, Any] = {
        "images": len(source),
        "judged": judged,
        "suspect": left_out,
        "missing": lacking,
        "retained": kept / len(source),
        "files": [str(suspect), str(missing), str(cleaned)],
    }
    lines = [
        f"{len(source)} images, tags of {judged} judged by {folds} teachers {unseen}: "
        f"{left_out} are suspect, {lacking} images lack one",
        f"retained: {kept} of {len(source)} images, {kept / len(source):.1%}",
    ]
    if known is not None:
        scores = score_missing(listed, known), score_suspect(listed, known)
        document["against_truth"] = dict(zip(("missing", "suspect"), scores, strict=True))
        lines += truth_lines(*scores)
    lines += [
        f"{suspect}, {missing}, {cleaned}",
        f"next: distill pretrain --samples {cleaned} {data.spelled()} --label-set "
        f"{label_set} --student NAME --out RUN",
    ]
    print_result(as_json, document, *lines)
