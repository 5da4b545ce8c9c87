"""`distill export`: a trained model for timm, and for ONNX runtimes."""

from pathlib import Path

import click


@click.command()
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files.")
@click.option("--label-set", help="Name or JSON, where nothing beside the model says it.")
@click.option("--onnx", is_flag=True, help="model.onnx as well (pip install '.[onnx]').")
def export(model: str, out: Path, label_set: str | None, onnx: bool) -> None:
    """Write MODEL (a run's folder, a weight file with its card, or timm:NAME) to --out.

    model.safetensors, config.json with the names of the classes, hierarchy.json.
    """
    from distill.hierarchy.semantic import resolve
    from trainers.models.export import export_folder, export_onnx
    from trainers.models.trained import open_trained

    trained = open_trained(model)
    if label_set:
        trained = trained.with_hierarchy(resolve(label_set))
    if onnx:
        export_onnx(trained, out / "model.onnx")
    for path in export_folder(trained, out):
        click.echo(str(path))
    if onnx:
        click.echo(str(out / "model.onnx"))
    click.echo(f'load: timm.create_model("local-dir:{out}", pretrained=True)')
