"""`distill serve` and `distill api-key`: the live teacher server."""

from pathlib import Path

import click

from distill.cli.options import listening, teacher, views
from distill.cli.options.images import CACHE


@click.command()
@teacher.teacher()
@listening.listening(port=8000)
@click.option(
    "--device",
    "devices",
    multiple=True,
    help="cpu, cuda or cuda:N, several times for several GPUs; all GPUs by default, or the CPU.",
)
@click.option("--store", help="Store to answer sample ids from, and to write through to.")
@click.option("--data", help="Images of those samples.")
@click.option("--split", default="train", show_default=True, help="Split of --data.")
@click.option("--views", type=click.IntRange(1, 1024), default=1, show_default=True)
@click.option(
    "--encoding",
    default="standard",
    show_default=True,
    help="small, standard, fine, or entries=N,steps=M; a store that is there has its own.",
)
@click.option("--block-rows", type=click.IntRange(1), default=8192, help="Images, of a new store.")
@click.option("--max-bad-fraction", type=click.FloatRange(0, 1), default=0.001, show_default=True)
@views.views
@click.option("--max-batch-size", type=click.IntRange(1, 4096), help="Images; 64 on a GPU, 16 not.")
@click.option("--max-wait-ms", type=click.FloatRange(0, 1000), default=0, show_default=True)
@click.option("--max-inflight-images", type=click.IntRange(1), default=1024, show_default=True)
@click.option(
    "--max-inflight-mib", type=click.IntRange(1), default=512, show_default=True, help="Bodies."
)
@click.option("--max-inflight-requests", type=click.IntRange(1), default=256, show_default=True)
@click.option("--max-images", type=click.IntRange(1), default=256, help="Of one request.")
@click.option("--max-body-mib", type=click.IntRange(1), default=64, show_default=True)
@click.option("--max-pixels", type=click.IntRange(1), default=25_000_000, help="Of one image.")
@click.option(
    "--deadline-s", type=click.FloatRange(0.001), default=60, help="Of a request without one."
)
@click.option(
    "--drain-s",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    help="From SIGTERM to the end, at most.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Threads that decode images; one a core by default."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=Path(CACHE),
    show_default=True,
    help="Folder of decoded views, and of answers that wait for the rest of their block.",
)
@click.option("--student", help="A trained model to show beside the teacher on the pages.")
def serve(
    choice: teacher.TeacherChoice,
    viewing: views.ViewChoice,
    listening: listening.Listening,
    devices: tuple[str, ...],
    store: str | None,
    data: str | None,
    split: str,
    views: int,
    encoding: str,
    block_rows: int,
    max_bad_fraction: float,
    max_batch_size: int | None,
    max_wait_ms: float,
    max_inflight_images: int,
    max_inflight_mib: int,
    max_inflight_requests: int,
    max_images: int,
    max_body_mib: int,
    max_pixels: int,
    deadline_s: float,
    drain_s: float,
    workers: int | None,
    cache: Path,
    student: str | None,
) -> None:
    """Answer students over HTTP, in the Open Inference Protocol; show pages at /.

    Ready after warm-up; SIGTERM ends it when all admitted requests are answered.
    """
    import os
    from contextlib import closing

    from distill.cli.options.images import open_images
    from distill.targets.encoding import EncodingSpec
    from teacher_server.http.json_log import json_log
    from teacher_server.precompute.run import PrecomputeOptions
    from teacher_server.serve.admission import Budgets
    from teacher_server.serve.lane import devices_of
    from teacher_server.serve.samples import open_samples
    from teacher_server.serve.server import make_server, run
    from teacher_server.serve.service import ServeOptions, Service
    from teacher_server.teacher.batch_size import UNTUNED
    from trainers.models.prediction import StudentOpinion

    address, keys, listener = listening.bound()  # before the teacher is loaded, which takes a while
    journal = json_log()
    with closing(listener):
        lanes = devices_of(devices)
        loaded = {device: choice.load(device) for device in dict.fromkeys(lanes)}
        teacher = loaded[lanes[0]]
        batch_size = max_batch_size or UNTUNED.get(teacher.device.type, 16)
        samples = None
        spec = EncodingSpec.named(encoding, teacher.hierarchy.classes_per_hierarchy)
        if store or data:
            samples = open_samples(
                teacher,
                PrecomputeOptions(
                    policy=viewing.policy(),
                    views=views,
                    encoding=encoding,
                    batch_size=batch_size,
                    compiled=False,
                    block_rows=block_rows,
                    max_bad_fraction=max_bad_fraction,
                    workers=0,
                ),
                store=store,
                source=open_images(data, split) if data else None,
                cache=cache.expanduser(),
                journal=journal,
            )
            spec = samples.encoding
        service = Service(
            [loaded[device] for device in lanes],
            ServeOptions(
                encoding=spec,
                max_batch_size=batch_size,
                fair=bool(keys and len(keys.digests) > 1),
                budgets=Budgets(
                    images=max_inflight_images,
                    bytes=max_inflight_mib * 2**20,
                    requests=max_inflight_requests,
                ),
                max_wait_ms=max_wait_ms,
                max_images_per_request=min(max_images, max_inflight_images),
                max_body_bytes=min(max_body_mib, max_inflight_mib) * 2**20,
                max_image_pixels=max_pixels,
                deadline_s=deadline_s,
                decode_threads=workers or os.cpu_count() or 1,
            ),
            journal=journal,
            samples=samples,
        )
        beside = StudentOpinion.of(student, teacher.hierarchy, "cpu") if student else None
        run(make_server(service, keys, address, beside), service, listener, drain_s)


@click.command("api-key")
@click.argument("name")
@click.option(
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="To append its digest to; what `distill serve --api-key-file` takes.",
)
def api_key(name: str, path: Path) -> None:
    """Make an API key for NAME, and print it: the file keeps its digest alone."""
    from teacher_server.http.keys import new_key

    click.echo(new_key(name, path))
