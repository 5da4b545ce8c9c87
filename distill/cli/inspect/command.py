"""`distill inspect`: what the teacher believes, per hierarchy, class, subtree and image."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from distill.cli.inspect.pages import Serving, serving
from distill.cli.options import common
from distill.cli.options.command import FILE, PATH, command, option, setting
from distill.cli.options.images import DataChoice, data_options
from distill.cli.options.listening import Listening, listen_options
from distill.cli.options.thresholds import thresholds

if TYPE_CHECKING:
    from distill.cli.inspect.report import Report
    from distill.teacher_server.inspect.inspection import Inspection
    from distill.teacher_server.inspect.tag_lists import ListedImages


@command(
    examples=[
        "STORE --by-subtree bird",
        "STORE --data DATA --missing missing.csv --suspect suspect.csv",
        "STORE --data DATA --serve",
    ]
)
@click.argument("path", metavar="STORE")
@option("--by-class", is_flag=True, help="Print one line per class.")
@option("--by-subtree", metavar="SYNSET", help="Print this class and its children.")
@option("--sample", metavar="KEY", help="Print the teacher's predictions for this image.")
@data_options(required=False, help="Images that STORE was made from.", clips=True)
@option(
    "--missing", type=PATH, help="Write tags to add: CSV with key, tag, wnid, path, confidence."
)
@option(
    "--suspect",
    type=PATH,
    help=("Write tags that the teacher contradicts: CSV with key, tag, its class, confidence."),
)
@option(
    "--cleaned",
    type=PATH,
    help=("Write a list for `pretrain --samples`: suspect tags removed, missing ones added."),
)
@setting(
    "--folds",
    multiple=True,
    metavar="STORE",
    help="Store of an out-of-fold teacher; one per fold.",
    section="Input",
)
@setting(
    "--truth", type=FILE, help="CSV with key and true_wnid, to score missing and suspect tags."
)
@setting(
    "--ratings",
    type=PATH,
    help="Answers of people about findings, CSV: pages ask for them, lists take what they confirm.",
)
@thresholds
@serving
@listen_options(port=8080, setting=True)
@option("--plot", type=PATH, help="Folder for charts.")
@option("--html", type=PATH, help="Write the overview as one file.")
@option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@common.as_json
@setting(
    "--cache",
    type=PATH,
    help="Folder for what is read off the store; STORE.inspect by default, for a bucket "
    "~/.cache/distill.",
)
def inspect(
    path: str,
    thresholds: dict[str, float],
    by_class: bool,
    by_subtree: str | None,
    sample: str | None,
    data: DataChoice | None,
    missing: Path | None,
    suspect: Path | None,
    cleaned: Path | None,
    folds: tuple[str, ...],
    truth: Path | None,
    ratings: Path | None,
    plot: Path | None,
    html: Path | None,
    as_csv: bool,
    as_json: bool,
    cache: Path | None,
    serving: "Serving",
    listen: Listening,
) -> None:
    """Report the teacher's confidence in STORE per hierarchy, class, subtree or image.

    The first call reads the whole store and keeps its statistics beside it. With --data, also
    finds missing and suspect tags.
    """
    from distill.errors import ConfigError

    given_options = {
        "--by-class": by_class,
        "--by-subtree": by_subtree is not None,
        "--sample": sample is not None,
        "--csv": as_csv,
        "--json": as_json,
        "--missing": missing,
        "--suspect": suspect,
        "--cleaned": cleaned,
        "--truth": truth,
        "--plot": plot,
        "--html": html,
    }
    given = {option for option, value in given_options.items() if value}
    for several in ({"--by-class", "--by-subtree", "--sample"}, {"--csv", "--json"}):
        if len(given & several) > 1:
            raise ConfigError(
                f"{' and '.join(sorted(given & several))} found, expected one of them"
            )
    serving.require_alone(given)
    if plot:
        from distill.charts import draw_inspection, require_charts

        require_charts("--plot")
    if (missing or suspect or cleaned or truth) and not data:
        raise ConfigError(
            "--missing, --suspect, --cleaned or --truth found without --data, expected the images "
            "of the store, whose keys it does not hold"
        )
    if ratings and not data:
        raise ConfigError(
            "--ratings found without --data, expected the images whose keys the answers are of"
        )
    if cleaned and not (missing or suspect):
        raise ConfigError(
            "--cleaned found without --missing and --suspect, expected one of them or both: they "
            "say what is filled in and what is left out"
        )
    if serving.wanted:
        serving.run(
            lambda: opened(path, thresholds, folds, cache, shown=True), data, ratings, listen
        )
        return
    from distill.cli.inspect.report import Report

    inspection = opened(path, thresholds, folds, cache, shown=not (as_json or as_csv))
    report = Report(inspection)
    if by_class:
        report.by_class()
    elif by_subtree is not None:
        report.by_subtree(by_subtree)
    elif sample is not None:
        report.sample(sample)
    else:
        report.overview()
    if data:
        pictures = _pictures(inspection, data, ratings)
        if inspection.doubt and (missing or suspect or cleaned or truth):
            raise ConfigError(inspection.doubt)
        _write_lists(report, pictures, missing=missing, suspect=suspect, cleaned=cleaned)
        if truth:
            report.against_truth(pictures, truth)
    if plot:
        report.files("charts", draw_inspection(plot, inspection.summary.teacher, report.figures))
    if html:
        from distill.teacher_server.pages.rendering import write_overview

        write_overview(html, inspection)
        report.files("page", [html])
    report.show("json" if as_json else "csv" if as_csv else "text")


def opened(
    path: str,
    thresholds: Mapping[str, float],
    folds: tuple[str, ...],
    cache: Path | None,
    *,
    shown: bool,
) -> "Inspection":
    """The store, with a bar while it is read for the first time."""
    from contextlib import ExitStack

    from distill.progress import Ticker, progress
    from distill.store.logit_store import LogitStore
    from distill.teacher_server.inspect.findings import Rules
    from distill.teacher_server.inspect.inspection import open_inspection

    with ExitStack() as bar:
        ticks: list[Ticker] = []

        def read_block(blocks: int) -> None:
            if not ticks:
                total = LogitStore.open(path).manifest.num_blocks
                ticks.append(bar.enter_context(progress("reading", total, "blocks", shown=shown)))
            ticks[0](blocks)

        rules = Rules(**thresholds)
        return open_inspection(path, rules=rules, folds=folds, cache=cache, read_block=read_block)


def _pictures(inspection: "Inspection", data: DataChoice, ratings: Path | None) -> "ListedImages":
    """With all findings, or those that people confirm."""
    from distill.curate.rating_file import RatingFile
    from distill.teacher_server.inspect.tag_lists import ListedImages

    pictures = ListedImages.of(inspection, data.open())
    return pictures.confirmed(RatingFile(ratings)) if ratings else pictures


def _write_lists(
    report: "Report",
    pictures: "ListedImages",
    *,
    missing: Path | None,
    suspect: Path | None,
    cleaned: Path | None,
) -> None:
    from distill.teacher_server.inspect.tag_lists import write_cleaned, write_missing, write_suspect

    if missing:
        write_missing(missing, pictures)
        report.files("missing tags", [missing])
    if suspect:
        write_suspect(suspect, pictures)
        report.files("suspect tags", [suspect])
    if cleaned:
        counts = write_cleaned(cleaned, pictures, missing=bool(missing), suspect=bool(suspect))
        report.cleaned(cleaned, *counts)
