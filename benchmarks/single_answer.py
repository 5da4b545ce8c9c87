"""Which class is an image of, when a semantic model has a softmax for each hierarchy?

    python benchmarks/single_answer.py [--quick] [--shared ../shared]

Five ways to score all classes alike, judged by the leaf class that the ResNet-18-D teacher of
tiny-imagenet-h gives its 5,000 validation images, out of the 200 that occur. Half a minute; --quick
takes 500 images. Prints a Markdown table, and as its last line one JSON object.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from distill.data.loader import in_batches, load_views
from distill.data.source import label_indices, open_source
from distill.data.view_policy import ViewPolicy
from distill.hierarchy.semantic import SemanticHierarchy, resolve
from distill.hierarchy.softmax import class_log_probs, hierarchy_log_probs
from distill.models.card import ModelInput
from distill.models.creation import create_model
from distill.models.weights import load_weights, read_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    data = options.shared / "data"
    hierarchy = resolve(str(data / "tiny-imagenet-h/label_set.json"))
    logits, labels = _answers(data, hierarchy, 500 if options.quick else None)
    leaves = torch.from_numpy(
        label_indices(open_source(data / "tiny-imagenet-h", "val"), hierarchy)
    )
    candidates = leaves.unique()
    chain = _chain_log_probs(logits, hierarchy)
    scores = {
        "walk down the tree": class_log_probs(logits, hierarchy),
        "mean log-probability along the chain": chain.sum(2) / (chain < 0).sum(2).clamp(min=1),
        "logits": logits,
        "product of the chain's probabilities": chain.sum(2),
        "the class's own probability": chain[:, :, 0],
    }
    print("| score | top-1 |\n| --- | ---: |")
    found = {}
    for name, score in scores.items():
        right = candidates[score[:, candidates].argmax(1)] == labels
        found[name] = round(right.float().mean().item(), 4)
        print(f"| {name} | {100 * found[name]:.1f} |")
    print(json.dumps(found))


def _answers(data: Path, hierarchy: SemanticHierarchy, limit: int | None) -> tuple[Tensor, Tensor]:
    """The teacher's logits, and the true classes."""
    source = open_source(data / "tiny-imagenet-h", "val").limited(limit)
    path = data / "teachers/resnet18d-64px-tiny-imagenet-h.safetensors"
    model = create_model("resnet18d", hierarchy.num_classes).eval()
    load_weights(model, read_weights(path))
    size, logits = ModelInput(size=(64, 64)), []
    requests = in_batches(range(len(source)), (0,), 250)
    with torch.inference_mode():
        for batch in load_views(source, ViewPolicy(name="plain"), [size.size], requests, workers=2):
            logits.append(model(size.normalise(batch.pixels[0][:, 0])))
    return torch.cat(logits), torch.from_numpy(label_indices(source, hierarchy))


def _chain_log_probs(logits: Tensor, hierarchy: SemanticHierarchy) -> Tensor:
    """[images, classes, depth]: of each class and its ancestors in their softmaxes, then 0."""
    own = torch.zeros(len(logits), hierarchy.num_classes + 1)
    order = torch.from_numpy(hierarchy.class_order)
    own[:, order] = torch.cat(hierarchy_log_probs(logits, hierarchy), 1)
    chains = torch.full((hierarchy.num_classes, len(hierarchy.level_sizes)), hierarchy.num_classes)
    for c in range(hierarchy.num_classes):
        member, place = c, 0
        while member >= 0:
            chains[c, place] = member
            member, place = hierarchy.parents[member], place + 1
    return own[:, chains]


if __name__ == "__main__":
    main()
