"""A teacher of 11,221 classes whose answers are as peaked and as related as a trained one's.

    python benchmarks/wide_teacher.py --out wide.safetensors [--shared ../shared]

No trained ImageNet-21K-P teacher is at hand where there is no network. This one has the trunk of
the teacher of tiny-imagenet-h under a head for ImageNet-21K-P, in which each class is a mixture of
the trained classes, nearer in WordNet weighing more (similarity of Wu and Palmer), with as much
noise again. Each hierarchy is sharpened until its mean largest probability is that of the trained
teacher. Use it as `--teacher resnet18d --weights wide.safetensors`; its accuracy means nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distill.data.loader import in_batches, load_views
from distill.data.source import open_source
from distill.data.view_policy import ViewPolicy
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.models.card import ModelCard
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher
from distill.teacher_server.teacher.teacher import Teacher

TEACHER = "resnet18d-64px-tiny-imagenet-h.safetensors"
# Mean largest probability of the trained teacher by hierarchy; the last stands for the eleventh.
PEAKS = (0.78, 0.39, 0.33, 0.29, 0.32, 0.37, 0.43, 0.41, 0.44, 0.55, 0.55)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("wide.safetensors"))
    options = parser.parse_args()
    data = options.shared / "data"
    _, features, _ = run_trained(data, 256 if options.quick else 1024)
    weight, _ = write_wide_teacher(data, features, options.out)
    print(json.dumps({"weights": str(options.out), "classes": len(weight)}))


def run_trained(data: Path, rows: int) -> tuple[SemanticHierarchy, Tensor, Tensor]:
    """The trained teacher's hierarchy, features and logits on `rows` augmented views."""
    hierarchy = resolve(str(data / "tiny-imagenet-h/label_set.json"))
    choice = MemberChoice(name="resnet18d", weights=data / "teachers" / TEACHER)
    teacher = load_teacher([choice], hierarchy, device=torch.device("cpu"))
    features = run_trunk(teacher, data / "tiny-imagenet-h", rows)
    model: Any = teacher.members[0].model
    with torch.inference_mode():
        return hierarchy, features, model.get_classifier()(features)


def run_trunk(teacher: Teacher, data: Path, rows: int) -> Tensor:
    source = open_source(data).limited(rows)
    requests = in_batches(range(rows), (0,), 64)
    model: Any = teacher.members[0].model
    parts = []
    with torch.inference_mode():
        for batch in load_views(source, ViewPolicy(), teacher.sizes, requests, workers=2):
            images = teacher.members[0].input.normalise(batch.pixels[0][:, 0])
            parts.append(model.forward_head(model.forward_features(images), pre_logits=True))
    return torch.cat(parts)


def write_wide_teacher(data: Path, features: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    """Its weights and their card as files; weight and bias of its head."""
    narrow = resolve(str(data / "tiny-imagenet-h/label_set.json"))
    wide = SemanticHierarchy.bundled("imagenet21k-p-fall11")
    state = safetensors.torch.load_file(data / "teachers" / TEACHER)
    weight, bias = mixed_head(narrow, wide, state["fc.weight"].float(), state["fc.bias"].float())
    for k, members in enumerate(wide.slices):
        classes = torch.as_tensor(wide.class_order[members])
        scale = sharpness(features[:1024] @ weight[classes].T + bias[classes], PEAKS[k])
        weight[classes] *= scale
        bias[classes] *= scale
    safetensors.torch.save_file({**state, "fc.weight": weight, "fc.bias": bias}, path)
    card = ModelCard.read(data / "teachers" / TEACHER)
    assert card
    ModelCard(
        model="resnet18d",
        num_classes=wide.num_classes,
        input=card.input,
        hierarchy_digest=wide.digest,
    ).write(path)
    return weight, bias


def mixed_head(
    narrow: SemanticHierarchy, wide: SemanticHierarchy, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of `weight` mixed by the similarity of Wu and Palmer, 2·shared depth / sum of depths."""
    index = {synset: c for c, synset in enumerate(wide.synsets)}

    def chains(hierarchy: SemanticHierarchy) -> Tensor:
        chain = torch.zeros(hierarchy.num_classes, wide.num_classes)
        for row, synset in enumerate(hierarchy.synsets):
            for member in (synset, *hierarchy.ancestors(synset)):
                if member in index:
                    chain[row, index[member]] = 1
        return chain

    of_wide, of_narrow = chains(wide), chains(narrow)
    depths = of_wide.sum(1)[:, None] + of_narrow.sum(1)
    mixture = (12 * 2 * (of_wide @ of_narrow.T) / depths).softmax(1)
    noise = torch.randn(len(mixture), weight.shape[1], generator=torch.Generator().manual_seed(0))
    mixed, mixed_bias = mixture @ weight + noise * weight.std(), mixture @ bias
    for row, synset in enumerate(narrow.synsets):
        if synset in index:
            mixed[index[synset]], mixed_bias[index[synset]] = weight[row], bias[row]
    return mixed, mixed_bias


def sharpness(logits: Tensor, peak: float) -> float:
    """The factor that gives this mean largest probability."""
    low, high = 0.05, 50.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        reached = (logits * middle).softmax(1).max(1).values.mean()
        low, high = (middle, high) if reached < peak else (low, middle)
    return low


if __name__ == "__main__":
    main()
