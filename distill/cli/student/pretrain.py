"""`distill pretrain`: train a student on synsets, with or without a teacher's targets."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distill.cli.options import common, recipes, targets

if TYPE_CHECKING:
    from distill.hierarchy.semantic import SemanticHierarchy
    from trainers.process_group import Machine
    from trainers.training.loop import TrainReport


@click.command()
@recipes.recipe
@common.data
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@targets.targets
@click.option("--label-set", help="Name or JSON; the targets' by default.")
@common.samples
@recipes.run
@common.limit
@common.machine
@common.as_json
def pretrain(
    choice: recipes.RecipeChoice,
    data: str,
    out: Path,
    targeting: targets.TargetsChoice,
    label_set: str | None,
    samples: Path | None,
    run: recipes.RunChoice,
    limit: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Train a student on DATA; with --targets it also learns what the teacher says.

    Running the same command again goes on at the last checkpoint in --out. torchrun starts one
    process a device.
    """
    from distill.cli.student.training import report_training, train_as_command

    def train(machine: "Machine", keywords: dict[str, Any]) -> "dict[str, TrainReport]":
        from distill.cli.options.images import open_images
        from distill.data.sample_list import SampleList
        from distill.data.source import has_split
        from distill.hierarchy.semantic import resolve
        from trainers.training.pretrain import pretrain

        def stated() -> "SemanticHierarchy":
            return resolve(label_set or "imagenet21k-p-fall11")

        answers = targeting.open(str(machine.device), stated)
        hierarchy = answers.hierarchy if answers and not label_set else stated()
        report = pretrain(
            recipe=choice.read(**({"image_size": answers.input_size[0]} if answers else {})),
            source=open_images(data).limited(limit),
            validation=open_images(data, "val") if has_split(data, "val") else None,
            hierarchy=hierarchy,
            targets=answers,
            samples=SampleList.read(samples) if samples else None,
            out=out,
            machine=machine,
            **keywords,
        )
        return {"": report}

    reports = train_as_command("pretrain", run, out, device, workers, as_json, train)
    if reports:
        report_training(reports[""], as_json)
