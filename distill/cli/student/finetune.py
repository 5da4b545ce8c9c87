"""`distill finetune`: train a student on for another task."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common
from distill.cli.options.command import FILE, adapt, command, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.recipes import (
    RecipeChoice,
    RunChoice,
    recipe_options,
    recipe_settings,
    run_folder,
    run_options,
)
from distill.cli.options.targets import TargetsChoice, target_options

if TYPE_CHECKING:
    from distill.data.source import ImageSource
    from distill.trainers.process_group import Machine
    from distill.trainers.recipe import Recipe
    from distill.trainers.training.finetune import LabelledImages
    from distill.trainers.training.loop import TrainReport

EPOCHS = 40


@command(
    nested=recipe_settings,
    examples=[
        "--student resnet18 --init RUN --data DATA --out TUNED",
        "--student resnet18 --init RUN --data DATA --tags tags.csv --out TUNED",
        "--student resnet18 --data DATA --compare pretrained,random --out COMPARED",
    ],
)
@adapt(
    *("--limit", "--scheme", "--kd-weight", "--targets"),
    epochs="40",
    scheme="single-label, with --tags multi-label",
)
@recipe_options
@data_options(split=None, validation=True, clips=True)
@option(
    "--tags",
    type=FILE,
    help=("Tags of multi-label images: CSV (key, tags separated by ;), COCO JSON or VOC folder."),
)
@setting("--val-tags", type=FILE, help="Tags of the validation images, if --tags lacks them.")
@run_folder
@target_options
@common.samples
@option(
    "--compare",
    metavar="INIT,INIT",
    help=("Train from each of several starts, such as pretrained,random, and plot the curves."),
)
@setting(
    "--longer",
    type=click.FloatRange(1, 100),
    default=3,
    help="Factor of epochs for random weights in --compare.",
)
@run_options
@common.limit
@common.machine
@common.as_json
def finetune(
    recipe_choice: RecipeChoice,
    data: DataChoice,
    tags: Path | None,
    val_tags: Path | None,
    out: Path,
    targets_choice: TargetsChoice,
    samples: Path | None,
    compare: str | None,
    longer: float,
    run_choice: RunChoice,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train a student on the classes of DATA, starting from --init.

    One class per image, or with --tags any number. Run the same command again to resume from the
    last checkpoint in --out.
    """
    from distill.cli.student.training import CURE, report_training, train_as_command

    def train(machine: "Machine", keywords: dict[str, Any]) -> "dict[str, TrainReport]":
        from distill.charts import require_charts
        from distill.data.sample_list import SampleList
        from distill.errors import ConfigError
        from distill.files import sole_writer
        from distill.hierarchy.semantic import SemanticHierarchy
        from distill.trainers.evaluation.tags import read_tags
        from distill.trainers.training.finetune import LabelledImages, classes_of, finetune
        from distill.trainers.training.finetune import compare as run_each

        if compare:
            require_charts("--compare")
        tag_file = read_tags(tags) if tags else None
        recipe = recipe_choice.read(
            scheme="multi-label" if tag_file else "single-label",
            epochs=EPOCHS,
            **recipe_choice.input_of_init(out),
        )

        def labelled(source: "ImageSource", file: Path | None) -> "LabelledImages":
            return LabelledImages.of(source, read_tags(file) if file else tag_file, classes)

        source = data.open()
        classes = (
            SemanticHierarchy.from_chains(tag_file.classes, {}, name=Path(data.location).name)
            if tag_file
            else classes_of(source)
        )
        validation = data.open_validation()
        answers = targets_choice.open(
            str(machine.device),
            lambda: classes,
            of_tags=tag_file is not None,
            give_up=lambda: keywords["stop"].heard,
        )
        if answers and answers.policy:
            recipe_choice.require_views(answers.policy, answers.location)
        shared: dict[str, Any] = {
            "training": labelled(source, None),
            "validation": labelled(validation, val_tags) if validation else None,
            "classes": classes,
            "targets": answers,
            "limit": limit,
            "samples": SampleList.read(samples) if samples else None,
            "machine": machine,
            **keywords,
        }
        if not compare:
            return {"": finetune(recipe=recipe, out=out, **shared)}
        if validation is None:
            raise ConfigError(
                "--compare found, but no validation images, expected some to compare by; pass "
                "--val-data"
            )
        starts = [init.strip() for init in compare.split(",") if init.strip()]

        def one(recipe: "Recipe", out: Path) -> "TrainReport":
            with sole_writer(out, cure=CURE) if machine.world.leads else nullcontext():
                return finetune(recipe=recipe, out=out, **shared)

        return run_each(starts, longer, recipe, out, one)

    reports = train_as_command(
        "finetune", recipe_choice, run_choice, out, device, workers, as_json, train
    )
    if reports and compare:
        _report_comparison(out, [*reports], as_json)
    elif reports:
        report_training(reports[""], as_json)


def _report_comparison(out: Path, names: list[str], as_json: bool) -> None:
    from distill.trainers.training.finetune import draw_comparison

    histories = {
        name: json.loads((out / name / "run.json").read_text())["history"] for name in names
    }
    last = {name: history[-1]["validation"] for name, history in histories.items()}
    figure = "top1" if "top1" in last[names[0]] else "macro_map"
    plot = out / "comparison.png"
    met = draw_comparison(plot, histories, figure)
    if as_json:
        crossing = asdict(met) if met else None
        click.echo(json.dumps({"last": last, "crossing": crossing}, allow_nan=False))
        return
    for name, history in histories.items():
        click.echo(
            f"{name}: {figure.replace('_', ' ')} {100 * last[name][figure]:.2f}% after "
            f"{len(history)} epochs"
        )
    if met is None:
        click.echo("random weights do not reach the other within their epochs")
    elif met.leads:
        click.echo(f"random weights lead from the first epoch on, {100 * met.accuracy:.2f}%")
    else:
        click.echo(
            f"random weights reach the other at epoch {met.epoch:.1f}, {100 * met.accuracy:.2f}%"
        )
    click.echo(f"plot: {plot}")
