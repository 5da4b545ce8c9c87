"""`distill export`: a trained model for timm, and for ONNX runtimes."""

from pathlib import Path

import click

from distill.cli.options import common
from distill.cli.options.checks import output_folder
from distill.cli.options.command import PATH, command, option
from distill.cli.output import print_result


@command(examples=["RUN --out FOLDER", "RUN --out FOLDER --onnx"])
@click.argument("model")
@option(
    "--out",
    required=True,
    type=PATH,
    callback=output_folder,
    help="Folder for the exported files.",
)
@common.label_set("that of the model")
@option("--onnx", is_flag=True, help="Also write model.onnx (pip install 'distill-kd[onnx]').")
@common.as_json
def export(model: str, out: Path, label_set: str | None, onnx: bool, as_json: bool) -> None:
    """Export MODEL: a run's folder, a weight file with its card, or timm:NAME.

    Writes model.safetensors, config.json with class names, and hierarchy.json.
    """
    from distill.hierarchy.semantic import resolve
    from distill.trainers.models.export import export_folder, export_onnx
    from distill.trainers.models.trained import open_trained

    trained = open_trained(model)
    if label_set:
        trained = trained.with_hierarchy(resolve(label_set))
    if onnx:
        export_onnx(trained, out / "model.onnx")
    files = [*map(str, export_folder(trained, out)), *([str(out / "model.onnx")] if onnx else [])]
    load = f'timm.create_model("local-dir:{out}", pretrained=True)'
    print_result(as_json, {"files": files, "load": load}, *files, f"load: {load}")
