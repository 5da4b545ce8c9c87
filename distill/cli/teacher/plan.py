"""`distill plan`: time, bytes and fidelity before the GPUs are booked."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from distill.cli.options import common
from distill.cli.options.checks import known_encoding
from distill.cli.options.command import command, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.teacher import TeacherChoice, teacher_options
from distill.cli.options.views import view_options
from distill.cli.output import print_result

if TYPE_CHECKING:
    from distill.data.view_policy import ViewPolicy
    from distill.teacher_server.precompute.plan import Plan


@command(
    examples=[
        "--teacher tresnet_l --data DATA",
        "--teacher tresnet_l --data DATA --rows 11797632 --views 1,4 --encoding standard",
        "--teacher tresnet_l --data DATA --gpus 8 --device-rate 2500 --price-per-hour 2.1",
    ]
)
@teacher_options()
@data_options(clips=True)
@option(
    "--rows",
    type=click.IntRange(1, 10**11),
    help="Images of the planned store.",
    show_default="those of DATA",
)
@option("--views", default="1,2,4,8", help="Numbers of views to compare.")
@option(
    "--encoding",
    "encodings",
    callback=known_encoding,
    multiple=True,
    help="small, standard, fine, dense, or entries=N,steps=M; repeat it to compare.",
    show_default="all three",
)
@option(
    "--gpus", type=click.IntRange(1), default=1, help="Devices side by side, each with its cores."
)
@option(
    "--device-rate",
    type=click.FloatRange(0, min_open=True),
    help="Views per second of one device: images/s of a precompute there, times its views.",
    show_default="this machine's",
)
@option(
    "--price-per-hour",
    type=click.FloatRange(0),
    help="Of one device, in any currency.",
)
@setting("--images", type=click.IntRange(1), help="Images of the pilot.", show_default="one block")
@view_options
@setting(
    "--batch-size",
    type=click.IntRange(1),
    help="Views per batch.",
    show_default="measured",
    section="Machine",
)
@setting(
    "--block-rows",
    type=click.IntRange(1),
    help="Images per block.",
    show_default="4096 to 16384, by the number of images",
)
@common.machine
@common.as_json
def plan(
    teacher_choice: TeacherChoice,
    policy: "ViewPolicy",
    data: DataChoice,
    rows: int | None,
    views: str,
    encodings: tuple[str, ...],
    gpus: int,
    device_rate: float | None,
    price_per_hour: float | None,
    images: int | None,
    batch_size: int | None,
    block_rows: int | None,
    device: str,
    workers: int,
    as_json: bool,
) -> None:
    """Run the teacher on a pilot of DATA and estimate time, bytes and fidelity of stores.

    Times are for this machine, or for --gpus of --device-rate.
    """
    from distill.errors import ConfigError
    from distill.targets.encoding import PRESETS
    from distill.teacher_server.precompute.plan import Booking, make_plan

    try:
        counts = [1] if policy.name == "plain" else [int(count) for count in views.split(",")]
    except ValueError as error:
        raise ConfigError(f"--views {views!r} found, expected numbers as 1,2,4") from error
    made = make_plan(
        source=data.open(),
        teacher=teacher_choice.load(device),
        policy=policy,
        encodings=encodings or tuple(PRESETS),
        views=counts,
        booking=Booking(devices=gpus, views_per_s=device_rate, price_per_hour=price_per_hour),
        rows=rows,
        pilot_images=images,
        block_rows=block_rows,
        batch_size=batch_size,
        workers=workers,
    )
    print_result(as_json, made.to_json(), *_lines(made))


def _lines(made: "Plan") -> Iterator[str]:
    yield (
        f"{made.rows} images; pilot of {made.pilot_images}: "
        f"{1000 * made.seconds_per_image:.2f} ms per image and "
        f"{1000 * made.seconds_per_view:.2f} ms per view on this machine"
    )
    if made.pilot_unreadable:
        yield f"{made.pilot_unreadable} pilot images could not be read"
    booking = made.booking
    rate = f"{booking.views_per_s:g} views/s" if booking.views_per_s else "this machine's speed"
    yield (
        f"{booking.devices} device{'s' * (booking.devices > 1)} of {rate}; cores: of the CPU, to "
        "decode for one of them"
    )
    yield from made.agreement.lines()
    yield "angle of the KD gradient (MSE): for a fresh student, and for one near the teacher"
    yield (
        "encoding              views     hours     cost  cores       size  B per view   median"
        "    p99     median    p99"
    )
    for planned in made.stores:
        fresh, near = planned.angle_deg["mse_fresh"], planned.angle_deg["mse_near"]
        yield (
            f"{planned.encoding:20s} {planned.views:6d} {planned.hours:9.2f} "
            f"{'–' if planned.cost is None else f'{planned.cost:.2f}':>8} {planned.cores:6.1f} "
            f"{common.format_bytes(planned.bytes_total):>10} {planned.bytes_per_view:9.1f}   "
            f"{fresh['median']:5.2f}° {fresh['p99']:5.2f}°     {near['median']:5.2f}° "
            f"{near['p99']:5.2f}°"
        )
