"""`distill pretrain`: train a student on synsets, with or without a teacher's targets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.options import common
from distill.cli.options.command import adapt, command
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
    from distill.hierarchy.semantic import SemanticHierarchy
    from distill.trainers.process_group import Machine
    from distill.trainers.training.loop import TrainReport


@command(
    nested=recipe_settings,
    examples=[
        "--student resnet18 --data DATA --targets STORE --out RUN",
        "--config imagenet21k-p.toml -o lr=2e-4 --data DATA --targets STORE --out RUN",
        "--student resnet18 --data DATA --targets http://teacher:8000 --out RUN",
    ],
)
@adapt("--limit", "--val-data")
@recipe_options
@data_options(split=None, validation=True, clips=True)
@run_folder
@target_options
@common.label_set("that of the targets", setting=True)
@common.samples
@run_options
@common.limit
@common.machine
@common.as_json
def pretrain(
    recipe_choice: RecipeChoice,
    data: DataChoice,
    out: Path,
    targets_choice: TargetsChoice,
    label_set: str | None,
    samples: Path | None,
    run_choice: RunChoice,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train a student on DATA; with --targets, also on a teacher's predictions.

    Run the same command again to resume from the last checkpoint in --out. Under torchrun, one
    process per device.
    """
    from distill.cli.student.training import report_training, train_as_command

    def train(machine: "Machine", keywords: dict[str, Any]) -> "dict[str, TrainReport]":
        from distill.data.sample_list import SampleList
        from distill.hierarchy.names import DEFAULT_LABEL_SET
        from distill.hierarchy.semantic import resolve
        from distill.trainers.training.pretrain import pretrain

        def stated() -> "SemanticHierarchy":
            return resolve(label_set or DEFAULT_LABEL_SET)

        answers = targets_choice.open(
            str(machine.device), stated, give_up=lambda: keywords["stop"].heard
        )
        hierarchy = answers.hierarchy if answers and not label_set else stated()
        defaults = recipe_choice.input_of_init(out)
        if answers:
            defaults["image_size"] = answers.input_size[0]
            if answers.policy:
                recipe_choice.require_views(answers.policy, answers.location)
        report = pretrain(
            recipe=recipe_choice.read(**defaults),
            source=data.open(),
            limit=limit,
            validation=data.open_validation(),
            hierarchy=hierarchy,
            targets=answers,
            samples=SampleList.read(samples) if samples else None,
            out=out,
            machine=machine,
            **keywords,
        )
        return {"": report}

    reports = train_as_command(
        "pretrain", recipe_choice, run_choice, out, device, workers, as_json, train
    )
    if reports:
        report_training(reports[""], as_json)
