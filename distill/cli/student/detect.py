"""`distill detect`: find objects with a detector on a pretrained backbone."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from distill.cli.options import common
from distill.cli.options.checks import known_models, output_folder
from distill.cli.options.command import PATH, command, option, setting
from distill.cli.output import print_result
from distill.cli.signals import finish_on_signal
from distill.models.names import WITHOUT_FILE

if TYPE_CHECKING:
    from distill.trainers.detection.train import DetectionReport
    from distill.trainers.recipe import Recipe

CURE = "wait for it, stop it, or choose another --out"


@command(
    examples=[
        "--student resnet50 --init RUN --data COCO --out DETECTOR",
        "--student resnet50 --data COCO --compare RUN,random --iterations 180000 --out COMPARED",
        "--student resnet10t --init random --data SCENES --image-size 128 --out DETECTOR",
    ]
)
@option("--student", required=True, callback=known_models, help="timm model name: the backbone.")
@option(
    "--init",
    default="pretrained",
    help="pretrained (timm's weights), random, a weight file or a run's folder.",
)
@setting(
    "--image-size", type=click.IntRange(32, 4096), default=800, help="Pixels of the short side."
)
@option(
    "--data",
    required=True,
    type=PATH,
    help="Folder with train.json and val.json, or annotations/instances_….json, and the images.",
    section="Input",
)
@common.limit
@setting("--seed", type=click.IntRange(0, 2**31), default=0, help="Random seed; also of --limit.")
@option(
    "--detector",
    type=click.Choice(["faster-rcnn", "mask-rcnn", "retinanet"]),
    default="faster-rcnn",
    help="What stands on the backbone.",
    section="Training",
)
@setting(
    "--channels",
    type=click.IntRange(8, 4096),
    default=256,
    help="Width of the feature pyramid and of the heads.",
    section="Training",
)
@option(
    "--iterations",
    type=click.IntRange(1),
    default=90_000,
    help="Steps; 90,000 of 16 images are the usual 1x schedule.",
    section="Training",
)
@option("--batch-size", type=click.IntRange(1), default=16, help="Images per step.")
@option("--lr", type=click.FloatRange(0, min_open=True), default=0.02, help="Learning rate of SGD.")
@setting("--weight-decay", type=click.FloatRange(0), default=1e-4, help="Weight decay.")
@setting(
    "--warmup",
    type=click.IntRange(0),
    default=500,
    help="Iterations of warm-up, at most a tenth of all.",
    section="Training",
)
@option(
    "--compare",
    metavar="INIT,INIT",
    help="Train from each of several starts, such as RUN,random, and plot the curves.",
)
@setting(
    "--longer",
    type=click.FloatRange(1, 100),
    default=3,
    help="Factor of iterations for random weights in --compare.",
)
@setting(
    "--validate-every",
    type=click.IntRange(1),
    show_default="a tenth of --iterations",
    help="Iterations between validations; the last one always ends with one.",
    section="Training",
)
@setting(
    "--checkpoint-minutes",
    type=click.FloatRange(0),
    default=10.0,
    help="Minutes between checkpoints; every validation also ends with one.",
    section="Training",
)
@option("--out", required=True, type=PATH, callback=output_folder, help="Folder of the run.")
@common.machine
@common.as_json
def detect(
    student: str,
    init: str,
    image_size: int,
    data: Path,
    limit: int | None,
    seed: int,
    detector: Literal["faster-rcnn", "mask-rcnn", "retinanet"],
    channels: int,
    iterations: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    compare: str | None,
    longer: float,
    validate_every: int | None,
    checkpoint_minutes: float,
    out: Path,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train a detector on the boxes, or masks, of DATA, and judge it by COCO's average precision.

    With --compare it answers whether pretraining was worth it: random weights get --longer times
    the iterations. Run the same command again to resume.
    """
    from distill.charts import require_charts
    from distill.errors import optional
    from distill.files import sole_writer
    from distill.models.devices import pick_device
    from distill.trainers.detection.coco import open_scenes
    from distill.trainers.detection.train import (
        DetectionRecipe,
        starts_of,
        train_detector,
    )
    from distill.trainers.training.finetune import draw_comparison

    with optional("detect", "average precision"):
        import faster_coco_eval  # noqa: F401
    if compare:
        require_charts("--compare")
    say = partial(click.echo, err=True)
    masks = detector == "mask-rcnn"
    training = open_scenes(data, "train", masks=masks).limited(limit, seed)
    validation = open_scenes(data, "val", training.classes, masks=masks)
    for scenes in (training, validation):
        say(f"data: {scenes.describe()}")

    inits = [each.strip() for each in compare.split(",") if each.strip()] if compare else [init]
    # Random weights see the pixels that the others do.
    like = next((each for each in inits if each not in WITHOUT_FILE), "random")

    def recipe_of(init: str) -> DetectionRecipe:
        return DetectionRecipe(
            backbone=_backbone(student, init, like if init == "random" else init, image_size, seed),
            detector=detector,
            channels=channels,
            iterations=iterations,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            warmup=warmup,
            seed=seed,
        )

    recipes = (
        starts_of({each: recipe_of(each) for each in inits}, longer)
        if compare
        else {"": recipe_of(init)}
    )
    say(f"model: {detector} on {student}, images of {image_size} pixels, {channels} channels")
    reports: dict[str, DetectionReport] = {}
    with (
        finish_on_signal("detect", "the current iteration") as stop,
        sole_writer(out, cure=CURE, say=say),
    ):
        for name, recipe in recipes.items():
            if name:
                say(f"start: {name}, {recipe.iterations} iterations")
            reports[name] = train_detector(
                recipe,
                training,
                validation,
                out / name,
                device=pick_device(device),
                workers=workers,
                validate_every=validate_every or max(1, iterations // 10),
                checkpoint_minutes=checkpoint_minutes,
                stop=stop,
                say=say,
            )
            if reports[name].stopped:
                stop.end()
    if not compare:
        report = reports[""]
        document = {**asdict(report), "detector": str(report.detector)}
        print_result(as_json, document, _last("", report), f"detector: {report.detector}")
        return
    met = draw_comparison(
        out / "comparison.png",
        {name: report.history for name, report in reports.items()},
        "ap",
        x="iteration",
        y="AP of boxes",
        decimals=0,
    )
    print_result(
        as_json,
        {
            "last": {name: report.history[-1]["validation"] for name, report in reports.items()},
            "crossing": met and asdict(met),
        },
        *(_last(f"{name}: ", report) for name, report in reports.items()),
        *([] if "random" in reports else ["no start has random weights, so none is overtaken"]),
        *(
            ["random weights do not reach the other within their iterations"]
            if met is None and "random" in reports
            else []
        ),
        *(
            [f"random weights reach the other at iteration {met.epoch:.0f}, AP {met.accuracy:.1%}"]
            if met
            else []
        ),
        f"plot: {out / 'comparison.png'}",
    )


def _backbone(student: str, init: str, like: str, image_size: int, seed: int) -> "Recipe":
    """Input and arguments are those of the weights `like`, where they say them."""
    from distill.models.card import ModelCard
    from distill.models.weights import find_weights
    from distill.trainers.models.student import recipe_input
    from distill.trainers.recipe import Recipe

    known: dict[str, Any] = {"normalisation": "model"}
    if like not in WITHOUT_FILE:
        card = ModelCard.read(find_weights(like))
        if card:
            known = {**known, **recipe_input(card.input, student), "model": dict(card.arguments)}
    return Recipe(student=student, init=init, seed=seed, **{**known, "image_size": image_size})


def _last(start: str, report: "DetectionReport") -> str:
    figures: Mapping[str, float | None] = report.history[-1]["validation"]
    shown = (f"{name} {100 * value:.1f}%" for name, value in figures.items() if value is not None)
    return f"{start}{', '.join(shown)} after {report.iterations} iterations"
