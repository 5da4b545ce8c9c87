"""`distill serve` and `distill api-key`: the live teacher server."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli.options import common
from distill.cli.options.checks import known_encoding, known_root_path
from distill.cli.options.command import PATH, command, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.listening import Listening, listen_options
from distill.cli.options.teacher import TeacherChoice, teacher_options
from distill.cli.options.views import view_options
from distill.cli.output import print_result
from distill.files import CACHE

if TYPE_CHECKING:
    from distill.data.view_policy import ViewPolicy


@command(
    examples=[
        "--teacher tresnet_l --data DATA --store STORE --views 4",
        "--teacher tresnet_l --host 0.0.0.0 --api-key-file keys.txt",
    ]
)
@teacher_options()
@listen_options(port=8000)
@option(
    "--device",
    "devices",
    multiple=True,
    help="cpu, cuda or cuda:N; repeat it for several GPUs.",
    show_default="all GPUs, or the CPU",
)
@option("--store", help="Store to answer samples from and to write new answers to.")
@data_options(required=False, help="Images of the samples that students ask about.")
@option("--views", type=click.IntRange(1, 1024), default=1, help="Views per image.")
@setting(
    "--encoding",
    callback=known_encoding,
    default="standard",
    help="small, standard, fine, dense, or entries=N,steps=M; an existing store keeps its own.",
)
@setting(
    "--block-rows",
    type=click.IntRange(1),
    help="Images per block of a new store.",
    show_default="4096 to 16384, by the number of images",
)
@common.max_bad_fraction
@view_options
@setting(
    "--max-batch-size",
    type=click.IntRange(1, 4096),
    help="Images per batch.",
    show_default="256 on a GPU, 16 elsewhere",
)
@setting(
    "--lanes",
    type=click.Choice(["processes", "threads"]),
    help="Run the teacher in a process for each device, or in this one.",
    show_default="processes on a GPU, threads elsewhere",
)
@setting(
    "--max-wait-ms",
    type=click.FloatRange(0, 1000),
    default=0,
    help="Longest wait for a batch to fill.",
)
@setting(
    "--max-inflight-images",
    type=click.IntRange(1),
    help="Images in flight.",
    show_default="1024 for each GPU",
)
@setting(
    "--max-inflight-mib",
    type=click.IntRange(1),
    help="Request bodies in flight, in MiB.",
    show_default="512 for each GPU",
)
@setting("--max-inflight-requests", type=click.IntRange(1), default=256, help="Requests in flight.")
@setting("--max-images", type=click.IntRange(1), default=256, help="Images per request.")
@setting(
    "--max-body-mib", type=click.IntRange(1), default=64, help="Size of a request body, in MiB."
)
@setting("--max-pixels", type=click.IntRange(1), default=25_000_000, help="Pixels per image.")
@setting(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Port to speak gRPC on as well; 0 takes a free one.",
)
@setting(
    "--root-path",
    default="/",
    callback=known_root_path,
    help="Path that a proxy puts before every path, as /teacher.",
)
@setting(
    "--deadline-s",
    type=click.FloatRange(0.001),
    default=60,
    help="Deadline of requests that name none.",
)
@setting(
    "--drain-s", type=click.FloatRange(0), default=30, help="Longest time from SIGTERM to exit."
)
@setting(
    "--workers",
    type=click.IntRange(1),
    help="Threads that decode images.",
    show_default="one per core",
)
@setting(
    "--cache",
    type=PATH,
    default=Path(CACHE),
    help="Folder for decoded views and for answers of unfinished blocks.",
)
@option("--student", help="Trained model to show beside the teacher on the pages.")
def serve(
    teacher_choice: TeacherChoice,
    policy: "ViewPolicy",
    listen: Listening,
    grpc_port: int | None,
    root_path: str,
    devices: tuple[str, ...],
    store: str | None,
    data: DataChoice | None,
    views: int,
    encoding: str,
    block_rows: int | None,
    max_bad_fraction: float,
    max_batch_size: int | None,
    lanes: str | None,
    max_wait_ms: float,
    max_inflight_images: int | None,
    max_inflight_mib: int | None,
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
    """Serve the teacher over HTTP and gRPC (Open Inference Protocol), with the pages at /.

    Ready after warm-up. On SIGTERM it answers all admitted requests, then exits. On SIGHUP it
    reads keys and certificate anew.
    """
    import os
    from contextlib import closing
    from dataclasses import replace
    from functools import partial

    from distill.targets.encoding import EncodingSpec
    from distill.teacher_server.front.server import make_server, run
    from distill.teacher_server.http.json_log import json_log
    from distill.teacher_server.precompute.options import PrecomputeOptions
    from distill.teacher_server.serve.admission import Budgets
    from distill.teacher_server.serve.lane import BATCH_SIZES, devices_of
    from distill.teacher_server.serve.samples import open_samples, require_store_or_data
    from distill.teacher_server.serve.service import ServeOptions, Service
    from distill.trainers.models.prediction import StudentOpinion

    require_store_or_data(store, data is not None)
    address, keys, listener = listen.bound()  # before the teacher is loaded, which takes a while
    journal = json_log()
    grpc = None if grpc_port is None else replace(address, port=grpc_port)
    if grpc:
        grpc.bound().close()  # whether it can be had
    with closing(listener):
        if address.warning:
            journal.event("unencrypted", level="warning", text=address.warning)
        places = devices_of(devices)

        def say(line: str) -> None:
            journal.event("understood", text=line)

        loaded = {device: teacher_choice.load(device, say=say) for device in dict.fromkeys(places)}
        teacher = loaded[places[0]]
        batch_size = max_batch_size or BATCH_SIZES.get(teacher.device.type, 16)
        devices_apart = len(set(places))  # a CPU's lanes share its cores
        inflight_images = max_inflight_images or 1024 * devices_apart
        inflight_mib = max_inflight_mib or 512 * devices_apart
        apart = lanes == "processes" or (lanes is None and teacher.device.type == "cuda")
        samples = None
        spec = EncodingSpec.named(encoding, teacher.hierarchy.classes_per_hierarchy)
        if store or data:
            samples = open_samples(
                teacher,
                PrecomputeOptions(
                    policy=policy,
                    views=views,
                    encoding=encoding,
                    batch_size=batch_size,
                    compiled=False,
                    block_rows=block_rows,
                    max_bad_fraction=max_bad_fraction,
                    workers=0,
                ),
                store=store,
                source=data.open(say=say) if data else None,
                cache=cache.expanduser(),
                journal=journal,
            )
            spec = samples.encoding
        service = Service(
            [loaded[device] for device in places],
            ServeOptions(
                encoding=spec,
                max_batch_size=batch_size,
                fair=bool(keys and len(keys.digests) > 1),
                budgets=Budgets(
                    images=inflight_images,
                    bytes=inflight_mib * 2**20,
                    requests=max_inflight_requests,
                ),
                max_wait_ms=max_wait_ms,
                max_images_per_request=min(max_images, inflight_images),
                max_body_bytes=min(max_body_mib, inflight_mib) * 2**20,
                max_image_pixels=max_pixels,
                deadline_s=deadline_s,
                decode_threads=workers or os.cpu_count() or 1,
            ),
            journal=journal,
            samples=samples,
            makers=[partial(teacher_choice.load_again, device) for device in places]
            if apart
            else [],
        )
        beside = StudentOpinion.of(student, teacher.hierarchy, "cpu") if student else None
        server = make_server(service, keys, address, beside, root_path)
        run(server, service, listener, drain_s, grpc)


@command("api-key", examples=["alice --file keys.txt"])
@click.argument("name")
@option(
    "--file",
    "path",
    required=True,
    type=PATH,
    help="Key file to append the key's digest to, for --api-key-file.",
)
@common.as_json
def api_key(name: str, path: Path, as_json: bool) -> None:
    """Make an API key for NAME and print it; the file keeps only its digest."""
    from distill.teacher_server.http.keys import new_key

    key = new_key(name, path)
    print_result(as_json, {"name": name, "key": key, "file": str(path)}, key)
