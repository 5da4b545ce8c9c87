"""Templates → HTML, and what the charts draw. All is escaped, nothing is fetched elsewhere."""

import hashlib
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from distill.files import write_atomically
from distill.teacher_server.inspect.inspection import Inspection
from distill.teacher_server.inspect.overview import QUANTILES
from distill.teacher_server.pages.site import Lazy, Site, StoreSnapshot

STATIC = {
    "style.css": "text/css",
    "charts.js": "text/javascript",
    "rating.js": "text/javascript",
    "chart.umd.min.js": "text/javascript",  # Chart.js; static/VENDORED.md says which
}
# Pages hold no script, style or handler of their own. An image that was uploaded comes as data.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def page_headers() -> dict[str, str]:
    """Return the headers of every page and file."""
    return {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "private, no-cache",
    }


def render(template: str, **context: Any) -> str:
    """One page."""
    return _environment().get_template(template).render(**context)


def write_overview(path: Path, inspection: Inspection) -> None:
    """The overview as one file that needs no other."""
    look = StoreSnapshot(inspection)
    summary = inspection.summary
    site = Site(
        hierarchy=inspection.hierarchy,
        teacher=summary.teacher,
        store=Lazy(lambda: look, value=look),
    )
    html = render(
        "overview.html",
        site=site,
        look=look,
        failure="",
        wait=False,
        title=f"{summary.teacher}: overview",
        charts=charts_of(site, look),
        alone={name: Markup(static_text(name)) for name in STATIC},
    )
    write_atomically(path, html.encode())


def static_text(name: str) -> str:
    """A file of STATIC."""
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


@cache
def static_url(name: str) -> str:
    """Another one for every content, so that browsers may keep it."""
    return f"/static/{name}?{hashlib.sha256(static_text(name).encode()).hexdigest()[:16]}"


def charts_of(site: Site, look: StoreSnapshot | None) -> dict[str, Any]:
    """What `charts.js` draws: figures by hierarchy."""
    classes = list(site.hierarchy.classes_per_hierarchy)
    if look is None:
        return {"classes": classes}
    rows = [asdict(row) for row in look.inspection.overview]
    return {
        "classes": classes,
        "quantiles": [row["confidence_quantiles"] for row in rows],
        "mean": [row["confidence_mean"] for row in rows],
        "labelled": [row["labelled"] for row in rows],
        "histograms": [row["confidence_histogram"] for row in rows],
        "same_top": [row["same_top"] for row in rows],
        "confidence_change": [row["confidence_change"] for row in rows],
    }


def class_url(wnid: str) -> str:
    """Return the URL of a class's page; names in a label set may hold any character."""
    return f"/tree/{quote(wnid, safe='')}"


def shown_id(sample_id: NDArray[np.uint64]) -> str:
    """32 hexadecimal digits."""
    return f"{int(sample_id[0]):016x}{int(sample_id[1]):016x}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("distill.teacher_server.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "prob": _prob, "count": _count, "text": _text}
    environment.filters |= {"class_url": class_url, "static_url": static_url}
    environment.globals |= {"QUANTILES": QUANTILES, "alone": None, "wait": False}
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _prob(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(number: int) -> str:
    return f"{number:,}"


def _text(text: object) -> str:
    """What UTF-8 can hold: names of files may be any bytes."""
    return str(text).encode("utf-8", "replace").decode()
