"""What would a teacher that saw the mixed image have said, instead of the mixture of two answers?

    python benchmarks/mixed_answers.py [--quick] [--shared ../shared]

Mixup and CutMix teach a student the mixture of what a teacher said of both images
(`distill.trainers.training.mixing`). Here the teacher of tiny-imagenet-h sees images of its
validation split mixed in pairs, at fixed shares, and its answer is compared with the mixture:
KL(answer ‖ mixture) in nats, mean over images, and over hierarchies by how sure the answer is; how
often the likeliest class, in the hierarchy where it is surest, is that of either image; and the
probability of the likeliest class there, beside the mixture's. Prints a log in Markdown, and as its
last line one JSON object.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whole_path import processor

from distill.data.loader import in_batches, load_views
from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.hierarchy.semantic import resolve
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.trainers.training.mixing import cut, mix

SHARES = (0.5, 0.7, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    data = options.shared / "data"
    hierarchy = resolve(str(data / "tiny-imagenet-h/label_set.json"))
    weights = data / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
    teacher = load_teacher(
        [MemberChoice(name="resnet18d", weights=weights)], hierarchy, device=torch.device("cpu")
    )
    source = open_source(data / "tiny-imagenet-h", "val")
    rows = np.arange(256 if options.quick else 2000)
    (size,) = teacher.sizes
    print("# Mixed answers, and answers to mixed images\n")
    print(
        f"Command: `python benchmarks/mixed_answers.py{' --quick' if options.quick else ''}`, "
        f"{time.strftime('%Y-%m-%d')}, {processor()}, {len(rows)} images, resnet18d at {size[0]} "
        f"pixels; Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}\n"
    )
    print(
        "| images | own share | KL, nats | class of either image | its probability, the mixture's |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    figures: dict[str, Any] = {}
    batches = list(
        load_views(source, ViewPolicy(name="plain"), [size], in_batches(rows, (0,), 64), workers=0)
    )
    for name, mixed in (("mixup", mix), ("CutMix", cut)):
        for share in SHARES:
            torch.manual_seed(0)
            found = []
            for batch in batches:
                pixels = batch.pixels[0][:, 0]
                made, own = mixed(pixels.float(), share)
                answers = teacher.targets([pixels])
                seen = teacher.targets([made.round().to(torch.uint8)])
                mixture = own * answers.probs + (1 - own) * answers.probs.flip(0)
                found.append(_compared(seen.probs, mixture, answers.probs, hierarchy))
            row = {key: float(torch.cat([f[key] for f in found]).mean()) for key in found[0]}
            figures[f"{name} {share}"] = {key: round(value, 4) for key, value in row.items()}
            print(
                f"| {name} | {share} | {row['kl']:.3f} | {100 * row['either']:.1f}% | "
                f"{row['sure']:.3f}, {row['mixture_sure']:.3f} |",
                flush=True,
            )
    print()
    print(json.dumps(figures))


def _compared(seen: Tensor, mixture: Tensor, alone: Tensor, hierarchy: Any) -> dict[str, Tensor]:
    parts = [(seen[:, k], mixture[:, k], alone[:, k]) for k in hierarchy.slices]
    kl = torch.stack(
        [
            (s.clamp(min=1e-9) * (s.clamp(min=1e-9).log() - m.clamp(min=1e-9).log())).sum(1)
            for s, m, _ in parts
        ],
        1,
    )
    sure = torch.stack([s.max(1).values for s, _, _ in parts], 1)
    place = sure.argmax(1)
    rows = torch.arange(len(seen))
    classes = torch.stack([s.argmax(1) for s, _, _ in parts], 1)[rows, place]
    own = torch.stack([a.argmax(1) for _, _, a in parts], 1)
    either = (classes == own[rows, place]) | (classes == own.flip(0)[rows, place])
    mixture_sure = torch.stack([m.max(1).values for _, m, _ in parts], 1)
    weights = sure / sure.sum(1, keepdim=True)
    return {
        "kl": (weights * kl).sum(1),
        "either": either.float(),
        "sure": sure[rows, place],
        "mixture_sure": mixture_sure[rows, place],
    }


if __name__ == "__main__":
    main()
