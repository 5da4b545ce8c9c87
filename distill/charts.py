"""Charts of what other parts measured, as PNG, SVG or PDF by the file's name."""

import io
from collections.abc import Sequence
from pathlib import Path

from distill.errors import ConfigError
from distill.files import write_atomically

FORMATS = (".png", ".svg", ".pdf")


def draw_confidence(
    path: Path,
    *,
    classes: Sequence[int],
    quantiles: Sequence[Sequence[float]],
    means: Sequence[float],
    labelled: Sequence[float],
    title: str,
) -> None:
    """Teacher confidence per hierarchy (5, 25, 50, 75, 95% quantiles) over the share of labels.

    Figure 7 of Ridnik et al. 2021 (arXiv 2104.10972), with spread.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"plot {path} found, expected a name that ends in {', '.join(FORMATS)}")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        boxes = [
            {"whislo": q[0], "q1": q[1], "med": q[2], "q3": q[3], "whishi": q[4], "mean": mean}
            for q, mean in zip(quantiles, means, strict=True)
        ]
        places = list(range(len(classes)))
        axes.bar(places, labelled, width=0.8, color="#d9e2ec", label="images with a label there")
        axes.bxp(boxes, positions=places, showfliers=False, showmeans=True, widths=0.45)
        axes.plot([], [], "^", color="C2", label="mean confidence")
        axes.set_xticks(places, [f"{k}\n{n} classes" for k, n in enumerate(classes)], fontsize=8)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("hierarchy")
        axes.set_ylabel("confidence P_k, share of images")
        axes.set_title(title)
        axes.legend(loc="lower left", fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=path.suffix[1:].lower(), dpi=130)
    finally:
        pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
