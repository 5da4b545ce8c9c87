"""What came of a release, and how it compares with the published ImageNet-21K-P."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from distill.hierarchy.semantic import SemanticHierarchy


@dataclass(frozen=True, kw_only=True)
class Published:
    """Counts that the authors state (github.com/Alibaba-MIIL/ImageNet21K, processing notes)."""

    hierarchy: str
    classes: int
    train: int
    val: int


PUBLISHED = {
    "fall11": Published(
        hierarchy="imagenet21k-p-fall11", classes=11_221, train=11_797_632, val=561_052
    ),
    "winter21": Published(
        hierarchy="imagenet21k-p-winter21", classes=10_450, train=11_060_223, val=522_500
    ),
}
# Share of a published label set that must be there to compare with it at all.
RESEMBLES = 0.5


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """images: written, by split. bytes_in, bytes_out: of those, before and after.

    bad: images that were left out. skipped: files of the release that could not be listed.
    against: the published release that it resembles, and how it differs; None if it resembles none.
    """

    out: str
    classes_found: int
    classes_kept: int
    images_found: int
    images: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    bad: int
    skipped: int
    complete: bool
    seconds: float
    against: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def compare(
    *,
    images_by_class: Mapping[str, int],
    kept: Sequence[str],
    images: Mapping[str, int],
    bad: Mapping[str, str],
    min_images: int,
    val_images: int,
) -> dict[str, Any] | None:
    """The published release with most classes in common, its counts beside ours, and why they
    differ.

    found: images of each class of the release. images: written, by split. bad: keys left out.
    """
    mine = set(kept)
    sets = {
        name: set(SemanticHierarchy.bundled(published.hierarchy).synsets)
        for name, published in PUBLISHED.items()
    }
    shares = {name: len(mine & theirs) / len(mine | theirs) for name, theirs in sets.items()}
    name = max(shares, key=lambda each: shares[each])
    if shares[name] < RESEMBLES:
        return None
    published, theirs = PUBLISHED[name], sets[name]
    counts = {
        "classes": (len(kept), published.classes),
        "train": (images["train"], published.train),
        "val": (images["val"], published.val),
    }
    return {
        "release": name,
        **{part: {"found": a, "published": b} for part, (a, b) in counts.items()},
        "matches": all(a == b for a, b in counts.values()),
        "why": _reasons(
            published, theirs, mine, images_by_class, images, bad, min_images, val_images
        ),
    }


def _reasons(
    published: Published,
    theirs: set[str],
    mine: set[str],
    images_by_class: Mapping[str, int],
    images: Mapping[str, int],
    bad: Mapping[str, str],
    min_images: int,
    val_images: int,
) -> list[str]:
    absent = sorted(theirs - set(images_by_class))
    small = sorted(c for c in theirs - mine if 0 < images_by_class.get(c, 0) < min_images)
    other = sorted(c for c in theirs - mine if images_by_class.get(c, 0) >= min_images)
    more = sorted(mine - theirs)
    exactly = [c for c in more if images_by_class[c] == 500]
    reasons = []
    if absent:
        reasons.append(f"{_some(absent)} of the published label set are not in this release")
    if small:
        reasons.append(f"{_some(small)} of it have fewer than {min_images} images here")
    if other:
        reasons.append(f"{_some(other)} of it were left out by --label-set")
    if more:
        reasons.append(f"{_some(more)} are kept here that the published label set lacks")
    if exactly:
        reasons.append(
            f"{_some(exactly)} of those have 500 images: the paper drops classes with fewer, the "
            "authors' script keeps those with more; --min-images 501 is the script's rule"
        )
    if bad:
        reasons.append(f"{len(bad)} images are left out, see bad_images.csv")
    if images["val"] == val_images * len(mine) != published.val and not (absent or small or more):
        reasons.append(
            f"{val_images} validation images of each of {len(mine)} classes are {images['val']}; "
            "the published number is not explained by the authors' script either"
        )
    if not reasons and (images["train"], len(mine)) != (published.train, published.classes):
        reasons.append("the classes are the published ones: this release has other images of them")
    return reasons


def _some(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")
    return f"{len(classes)} {'class' if len(classes) == 1 else 'classes'} ({shown})"
