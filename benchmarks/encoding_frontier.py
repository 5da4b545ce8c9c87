"""How few bytes keep the KD gradient? The design space of encodings, searched on real answers.

    python benchmarks/encoding_frontier.py [--quick] [--shared ../shared] [--out benchmarks/results]

Two teachers on augmented views of tiny-imagenet-h:
- the trained one: ResNet-18-D, 440 classes in 10 hierarchies;
- one of 11,221 classes, as peaked as the trained one: see wide_teacher.py.

Payload is what index, prob, confidence and sq_norm take in chunks of 8192 rows (4096 of the wide
teacher). The angle is that of the dense and the sparse KD gradient, for a fresh student and for one
near the teacher (`distill.losses.fidelity`); half_way.py looks at those between, and at KL. In the
end whole stores are precomputed with the presets and weighed.

Prints tables in Markdown, writes encoding_frontier.svg, and ends with one JSON object on a line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import torch
from frontier_report import Point, draw, print_points
from torch import Tensor
from wide_teacher import TEACHER, run_trained, write_wide_teacher

from distill.hierarchy.semantic import SemanticHierarchy
from distill.hierarchy.softmax import top_mass
from distill.losses.fidelity import gradient_angles, others_of
from distill.store.format.chunks import encode_chunk
from distill.store.format.codes import Coding
from distill.targets.encoding import PRESETS, EncodingSpec
from distill.targets.tensors import DenseTargets, SparseTargets

BLOCK = 8192


@dataclass(frozen=True, eq=False)
class TargetRows:
    """A teacher's answers: its hierarchy and exact targets."""

    name: str
    hierarchy: SemanticHierarchy
    exact: DenseTargets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows = 1024 if options.quick else BLOCK
    data = options.shared / "data"
    with tempfile.TemporaryDirectory() as scratch:
        trained, features = trained_answers(data, rows)
        wide, weights = wide_answers(data, features[: rows // 2], Path(scratch))
        points = {a.name: search(a, quick=options.quick) for a in (trained, wide)}
        for name, found in points.items():
            print_points(name, found)
        sizes = weigh_stores(data, weights, Path(scratch), quick=options.quick)
    if not options.quick:
        draw(points, options.out / "encoding_frontier.svg")
    print("\n## Whole stores, everything included\n")
    print("| teacher | encoding | views | B per view | fresh median | p99 | near median | p99 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for s in sizes:
        print(
            f"| {s['teacher']} | {s['encoding']} | {s['views']} | {s['bytes_per_view']:.1f} | "
            f"{s['fresh']['median']:.2f}° | {s['fresh']['p99']:.2f}° | "
            f"{s['near']['median']:.2f}° | {s['near']['p99']:.2f}° |"
        )
    print(json.dumps({"rows": rows, "stores": sizes}))


# -- teachers -------------------------------------------------------------------------------------


def trained_answers(data: Path, rows: int) -> tuple[TargetRows, Tensor]:
    """Of the trained teacher, and the features under its head."""
    hierarchy, features, logits = run_trained(data, rows)
    return answers_of("440 classes", hierarchy, logits), features


def wide_answers(data: Path, features: Tensor, scratch: Path) -> tuple[TargetRows, Path]:
    """Of the 11,221-class teacher, and its weights in a file."""
    path = scratch / "wide.safetensors"
    weight, bias = write_wide_teacher(data, features, path)
    wide = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    return answers_of("11,221 classes", wide, features @ weight.T + bias), path


def answers_of(name: str, hierarchy: SemanticHierarchy, logits: Tensor) -> TargetRows:
    parts = logits[:, torch.as_tensor(hierarchy.class_order)].double()
    probs = torch.cat([p.softmax(1) for p in parts.split(hierarchy.classes_per_hierarchy, 1)], 1)
    probs = probs.float()
    exact = DenseTargets(probs=probs, confidence=top_mass(probs, hierarchy))
    return TargetRows(name, hierarchy, exact)


# -- the search -----------------------------------------------------------------------------------

# to_codes(probabilities [rows, slots], largest first) → codes; to_probs back.
Quantiser = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def search(answers: TargetRows, *, quick: bool) -> list[Point]:
    sizes = answers.hierarchy.classes_per_hierarchy
    entries = (4, 8) if quick else (4, 5, 6, 8, 9, 10, 12, 16)
    some = (8,) if quick else (4, 8, 12)
    points = [
        point(answers, "even steps, budget by size", f"{n} entries, {steps} steps", spec.entries,
              even(steps))
        for n in entries for steps in ((191,) if quick else (63, 127, 191, 255, 511))
        for spec in [EncodingSpec.budgeted(sizes, entries=n, prob_steps=steps)]
    ]  # fmt: skip
    for n in some:
        same = tuple(min(n, size) for size in sizes)
        points += [
            *(
                point(answers, "even steps, same budget", f"{n} entries, {s} steps", same, even(s))
                for s in (127, 255)
            ),
            *(
                point(answers, "logarithmic", f"{n} entries, {b} bits over 16 octaves", same,
                      logarithmic(b))
                for b in (6, 8, 10, 12)
            ),
            *(
                point(answers, "square root", f"{n} entries, {s} steps", same, power(0.5, s))
                for s in (63, 127, 255)
            ),
            *(
                point(answers, "scale a row and hierarchy", f"{n} entries, {s} steps", same,
                      scaled(s))
                for s in (63, 255)
            ),
        ]  # fmt: skip
    for strong in (0.5, 1.0):
        middle = statistics.median(sizes)
        budget = tuple(max(1, min(n, round(8 * (middle / n) ** strong))) for n in sizes)
        points.append(
            point(
                answers,
                "other budgets",
                f"8 entries · (n̄/n)^{strong}, 255 steps",
                budget,
                even(255),
            )
        )
    many = tuple(min(24, size) for size in sizes)
    points += [
        point(answers, "by mass", f"{mass:.0%}, at most 24 entries, 255 steps", many,
              even(255), mass=mass)
        for mass in ((0.9,) if quick else (0.5, 0.7, 0.8, 0.9, 0.95))
    ]  # fmt: skip
    points += [
        point(answers, "dead zone", f"over {floor} of 255 steps, at most 24 entries", many,
              even(255, floor))
        for floor in ((4,) if quick else (2, 4, 6))
    ]  # fmt: skip
    print_packing(answers)
    return points


def even(steps: int, floor: int = 1) -> Quantiser:
    def to_codes(p: Tensor) -> Tensor:
        codes = (p * steps + 0.5).floor()
        return torch.where(codes < floor, 0, codes)

    return to_codes, lambda c: c / steps


def power(exponent: float, steps: int) -> Quantiser:
    return (
        lambda p: (p**exponent * steps + 0.5).floor(),
        lambda c: (c / steps) ** (1 / exponent),
    )


def logarithmic(bits: int, octaves: float = 16.0) -> Quantiser:
    top = 2**bits - 1

    def to_codes(p: Tensor) -> Tensor:
        codes = 1 + ((p.clamp(min=1e-30).log2() / octaves + 1) * (top - 1)).round()
        return torch.where(p < 2**-octaves, 0, codes.clamp(1, top))

    return to_codes, lambda c: torch.where(c > 0, 2 ** (octaves * ((c - 1) / (top - 1) - 1)), 0.0)


def scaled(steps: int) -> Quantiser:
    """Steps of the hierarchy's largest probability, which takes the first slot in 255 steps."""

    def largest(first: Tensor) -> Tensor:
        return ((first * 255 + 0.5).floor() / 255).clamp(min=1 / 255)

    def to_codes(p: Tensor) -> Tensor:
        rest = (p[:, 1:] / largest(p[:, :1]) * steps + 0.5).floor().clamp(max=255)
        return torch.cat([(p[:, :1] * 255 + 0.5).floor(), rest], 1)

    def to_probs(c: Tensor) -> Tensor:
        first = c[:, :1] / 255
        return torch.cat([first, c[:, 1:] / steps * first.clamp(min=1 / 255)], 1)

    return to_codes, to_probs


def point(
    answers: TargetRows,
    family: str,
    what: str,
    budget: tuple[int, ...],
    quantiser: Quantiser,
    mass: float = 1.0,
) -> Point:
    codes, sparse = encoded(answers, budget, quantiser, mass)
    errors = [
        gradient_angles(
            exact=DenseTargets(
                probs=answers.exact.probs[i : i + 512],
                confidence=answers.exact.confidence[i : i + 512],
            ),
            sparse=SparseTargets(
                index=sparse.index[i : i + 512],
                prob=sparse.prob[i : i + 512],
                confidence=sparse.confidence[i : i + 512],
                sq_norm=sparse.sq_norm[i : i + 512],
                slots=budget,
            ),
            others=others_of(range(512), answers.exact.probs[i : i + 512]),
            labels=torch.full((len(codes[i : i + 512]),), -1),
            hierarchy=answers.hierarchy,
        )
        for i in range(0, len(codes), 512)
    ]
    fresh, near = (torch.cat([e[name] for e in errors]) for name in ("mse_fresh", "mse_near"))
    return Point(
        family,
        what,
        payload(answers, budget, sparse, codes),
        (fresh.median().item(), fresh.quantile(0.99).item()),
        (near.median().item(), near.quantile(0.99).item()),
    )


def encoded(
    answers: TargetRows, budget: tuple[int, ...], quantiser: Quantiser, mass: float
) -> tuple[Tensor, SparseTargets]:
    sizes = answers.hierarchy.classes_per_hierarchy
    indices, codes, probs = [], [], []
    for part, slots in zip(answers.exact.probs.split(sizes, 1), budget, strict=True):
        top = part.topk(slots, 1)
        before = top.values.cumsum(1) - top.values
        code = torch.where(before < mass, quantiser[0](top.values), 0.0)
        codes.append(code)
        probs.append(torch.where(code > 0, quantiser[1](code), 0.0).float())
        indices.append(torch.where(code > 0, top.indices, 0))
    squares = [p.square().sum(1) for p in answers.exact.probs.split(sizes, 1)]
    sparse = SparseTargets(
        index=torch.cat(indices, 1),
        prob=torch.cat(probs, 1),
        confidence=answers.exact.confidence,
        sq_norm=torch.stack(squares, 1),
        slots=budget,
    )
    return torch.cat(codes, 1), sparse


def payload(
    answers: TargetRows, budget: tuple[int, ...], sparse: SparseTargets, codes: Tensor
) -> float:
    """Bytes a view, in whole chunks."""
    sizes = answers.hierarchy.classes_per_hierarchy
    # Confidence and ΣT² are predicted from even steps, whatever the scale of the probabilities.
    coding = Coding(EncodingSpec(entries=budget, prob_steps=255), sizes)
    stored = coding.to_stored(coding.quantise(sparse.to_rows()))
    small = codes.numpy().astype(np.uint8 if codes.max() < 256 else np.uint16)
    columns = {**stored, "prob": np.ascontiguousarray(small.T)}
    block = min(BLOCK, len(codes))
    return sum(
        len(encode_chunk(name, np.ascontiguousarray(columns[name][:, i : i + block]), block))
        for name in ("index", "prob", "confidence", "sq_norm")
        for i in range(0, len(codes), block)
    ) / len(codes)


def print_packing(answers: TargetRows) -> None:
    """Compressors, orders and predictions, for the standard preset."""
    spec = EncodingSpec.named("standard", answers.hierarchy.classes_per_hierarchy)
    codes, sparse = encoded(answers, spec.entries, even(spec.prob_steps), 1.0)
    coding = Coding(spec, answers.hierarchy.classes_per_hierarchy)
    whole = coding.quantise(sparse.to_rows())
    stored = coding.to_stored(whole)
    block = min(BLOCK, len(codes))

    def bytes_of(columns: np.ndarray, codec: Any = None) -> float:
        parts = [
            np.ascontiguousarray(columns[:, i : i + block])
            for i in range(0, columns.shape[1], block)
        ]
        encode = codec.encode if codec else lambda part: encode_chunk("", part, block)
        return sum(len(encode(part)) for part in parts) / len(codes)

    shuffles = {"no": 0, "byte": 1, "bit": 2}
    ways: dict[str, Any] = {"zstd 9, a column a block (ours)": None}
    ways |= {f"zstd 9, {n} shuffle": numcodecs.Blosc("zstd", 9, s) for n, s in shuffles.items()}
    ways |= {"plain zstd 19": numcodecs.Zstd(19), "lz4": numcodecs.Blosc("lz4", 9, 2)}
    print(f"\n## Packing, {answers.name}, standard preset (B per view)\n")
    print("| compressor | index | prob |\n| --- | --- | --- |")
    for name, codec in ways.items():
        print(f"| {name} | {bytes_of(stored['index'], codec):.1f} | "
              f"{bytes_of(stored['prob'], codec):.1f} |")  # fmt: skip
    by_index, deltas = ascending_order(codes.numpy(), sparse.index.numpy(), spec.entries)
    delta_bytes = bytes_of(deltas.T.astype(stored["index"].dtype))
    print(f"| entries by class, index as deltas | {delta_bytes:.1f} | "
          f"{bytes_of(by_index.T.astype(stored['prob'].dtype)):.1f} |")  # fmt: skip
    print("\n| field | in 16 bits | as what the prediction leaves |\n| --- | --- | --- |")
    for name in ("confidence", "sq_norm"):
        plain = np.ascontiguousarray(getattr(whole, name).T)
        print(f"| {name} | {bytes_of(plain):.1f} | {bytes_of(stored[name]):.1f} |")


def ascending_order(
    codes: np.ndarray, index: np.ndarray, budget: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Each hierarchy's entries by class instead of by probability, classes as differences."""
    stops = np.cumsum(budget)
    sorted_codes, deltas = [], []
    for start, stop in zip(stops - budget, stops, strict=True):
        order = np.argsort(index[:, start:stop], 1, kind="stable")
        classes = np.take_along_axis(index[:, start:stop], order, 1)
        sorted_codes.append(np.take_along_axis(codes[:, start:stop], order, 1))
        deltas.append(np.diff(classes, axis=1, prepend=0))
    return np.concatenate(sorted_codes, 1), np.concatenate(deltas, 1)


# -- results --------------------------------------------------------------------------------------


def weigh_stores(data: Path, wide: Path, scratch: Path, *, quick: bool) -> list[dict[str, Any]]:
    label_set = str(data / "tiny-imagenet-h" / "label_set.json")
    teachers = {
        "440 classes": (data / "teachers" / TEACHER, label_set),
        "11,221 classes": (wide, "imagenet21k-p-fall11"),
    }
    # The wide label set has all but one of the data's synsets, so the images go without labels.
    unlabelled = scratch / "unlabelled"
    strip_labels(data / "tiny-imagenet-h", unlabelled)
    sizes = []
    for name, (weights, labels) in teachers.items():
        for encoding in ("standard",) if quick else PRESETS:
            place = scratch / f"{name}-{encoding}"
            images = data / "tiny-imagenet-h" if labels == label_set else unlabelled
            command = [
                *(sys.executable, "-m", "distill.cli.main", "precompute", "--teacher", "resnet18d"),
                *("--weights", weights, "--label-set", labels, "--data", images, "--store", place),
                *("--views", "2", "--encoding", encoding, "--device", "cpu", "--workers", "2"),
                *("--json", *(("--limit", "1024") if quick else ())),
            ]
            ran = subprocess.run(
                list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True
            )
            store = json.loads(ran.stdout)["store"]
            angles = store["fidelity"]["angle_deg"]
            sizes.append(
                {
                    "teacher": name,
                    "encoding": encoding,
                    "views": store["views"],
                    "bytes_per_view": round(store["bytes_per_view"], 1),
                    "fresh": angles["mse_fresh"],
                    "near": angles["mse_near"],
                }
            )
    return sizes


def strip_labels(data: Path, folder: Path) -> None:
    """The training images without their tags."""
    import tarfile

    folder.mkdir()
    for path in data.glob("train-*.tar"):
        with tarfile.open(path) as whole, tarfile.open(folder / path.name, "w") as images:
            for member in whole:
                if member.name.lower().endswith((".jpg", ".jpeg")):
                    images.addfile(member, whole.extractfile(member))


if __name__ == "__main__":
    main()
