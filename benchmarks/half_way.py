"""Which model student stands for a real one half-way, and what KL asks of an encoding?

    python benchmarks/half_way.py [--quick] [--shared ../shared]

A test_resnet learns from the exact answers of the trained teacher on augmented views of
tiny-imagenet-h, as `distill pretrain` weighs labels and KD. After each epoch the gradients that a
store would give it are compared with the exact ones, beside those of model students that need the
teacher's answers alone. Then encodings of several budgets are weighed: payload bytes against the
angles, MSE and KL, for the model student and the real ones.

Prints tables in Markdown, and as its last line one JSON object.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from encoding_frontier import TargetRows, answers_of, encoded, even, payload
from torch import Tensor
from wide_teacher import TEACHER

from distill.data.loader import in_batches, load_views
from distill.data.source import label_indices, open_source
from distill.data.view_policy import ViewPolicy
from distill.hierarchy.semantic import resolve
from distill.hierarchy.softmax import hierarchy_probs
from distill.losses.fidelity import _angles, _normalised
from distill.losses.semantic import semantic_kd_loss, semantic_softmax_loss
from distill.models.creation import create_model
from distill.targets.encoding import PRESETS, EncodingSpec
from distill.targets.tensors import DenseTargets, densify
from distill.teacher_server.teacher.loading import MemberChoice, load_teacher

BATCH, KD_WEIGHT, AUDITED = 128, 100.0, 1024
THIRD = 1 / 3
# entries, steps and tilt of `EncodingSpec.budgeted`.
BUDGETS = (
    *PRESETS.values(),
    *((n, s, THIRD) for n, s in ((12, 127), (20, 127), (24, 127), (24, 255), (32, 191), (32, 255))),
    *((n, 191, 0.0) for n in (12, 16, 24)),
    *((n, 191, -THIRD) for n in (9, 12, 16, 20)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    rows, epochs = (1024, 2) if options.quick else (8192, 8)
    answers, pixels, labels = teacher_of(options.shared / "data", rows)
    wanted = (1, 2) if options.quick else (2, 3, 4, 8)
    real = dict(students(answers, pixels, labels, epochs, wanted))
    models = model_students(answers.exact.probs[:AUDITED].double(), answers)
    everybody = {f"student after epoch {n}": s for n, s in real.items()} | models
    exact, tags = answers.exact.select(torch.arange(AUDITED)), labels[:AUDITED]
    table: list[dict[str, object]] = []
    print("\n| student | MSE median, p99 | KL median, p99 |\n| --- | --- | --- |")
    standard = stored(answers, PRESETS["standard"])[1]
    for name, probs in everybody.items():
        found = figures(probs, exact, standard, tags, answers)
        table.append({"student": name, **found})
        print(f"| {name} | {shown(found['mse'])} | {shown(found['kl'])} |")
    half_way = models["√(own answer · another image's)"]
    print("\n| entries, steps, tilt | B per view | × standard | model student MSE | KL |", end="")
    print("".join(f" KL after epoch {n} |" for n in real))
    print("| --- | --- | --- | --- | --- |" + " --- |" * len(real))
    usual = stored(answers, PRESETS["standard"])[0]
    for budget in BUDGETS[:4] if options.quick else BUDGETS:
        weight, decoded = stored(answers, budget)
        model = figures(half_way, exact, decoded, tags, answers)
        of_real = [figures(s, exact, decoded, tags, answers)["kl"] for s in real.values()]
        table.append({"budget": budget, "bytes": weight, "model": model, "kl of real": of_real})
        entries, steps, tilt = budget
        print(
            f"| {entries}, {steps}, {tilt:+.2f} | {weight:.1f} | {weight / usual:.2f} | "
            f"{shown(model['mse'])} | {shown(model['kl'])} |"
            + "".join(f" {shown(each)} |" for each in of_real)
        )
    print(json.dumps({"rows": rows, "epochs": epochs, "figures": table}))


def teacher_of(data: Path, rows: int) -> tuple[TargetRows, Tensor, Tensor]:
    """Its exact answers on augmented views, the views [rows, 3, 64, 64], and the labels."""
    hierarchy = resolve(str(data / "tiny-imagenet-h/label_set.json"))
    choice = MemberChoice(name="resnet18d", weights=data / "teachers" / TEACHER)
    teacher = load_teacher([choice], hierarchy, device=torch.device("cpu"))
    source = open_source(data / "tiny-imagenet-h").limited(rows)
    requests = in_batches(range(len(source)), (0,), 64)
    views = load_views(source, ViewPolicy(), teacher.sizes, requests, workers=2)
    pixels = torch.cat([batch.pixels[0][:, 0] for batch in views])
    logits = torch.cat([teacher.logits([part])[0] for part in pixels.split(128)])
    labels = torch.from_numpy(label_indices(source, hierarchy))
    return answers_of("440 classes", hierarchy, logits.clone()), pixels, labels


def students(
    answers: TargetRows, pixels: Tensor, labels: Tensor, epochs: int, wanted: tuple[int, ...]
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities [AUDITED, members] of a student after those epochs."""
    torch.manual_seed(0)
    hierarchy = answers.hierarchy
    model = create_model("test_resnet", hierarchy.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
    steps = epochs * (len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for epoch in range(1, epochs + 1):
        model.train()
        for rows in torch.randperm(len(pixels)).split(BATCH):
            if len(rows) < BATCH:
                continue
            logits = model(pixels[rows].float() / 255)
            loss = semantic_softmax_loss(
                logits=logits,
                labels=labels[rows],
                hierarchy=hierarchy,
                label_smoothing=0.2,
                weights="paper",
            )
            distance = semantic_kd_loss(
                student_logits=logits,
                targets=answers.exact.select(rows),
                labels=labels[rows],
                hierarchy=hierarchy,
                divergence="mse",
            )
            optimizer.zero_grad()
            (loss + KD_WEIGHT * distance).backward()
            optimizer.step()
            schedule.step()
        if epoch in wanted:
            with torch.inference_mode():
                logits = model.eval()(pixels[:AUDITED].float() / 255)
            yield epoch, hierarchy_probs(logits, hierarchy).double()


def model_students(teacher: Tensor, answers: TargetRows) -> dict[str, Tensor]:
    other, mean = teacher.roll(1, 0), teacher.mean(0, keepdim=True)
    torch.manual_seed(0)

    def like(values: Tensor) -> Tensor:
        return _normalised(values.clamp(min=1e-30), answers.hierarchy.classes_per_hierarchy)

    uniform = like(torch.ones_like(teacher))

    return {
        "uniform (fresh)": uniform,
        "√(own answer · another image's)": like((teacher * other).sqrt()),
        **{f"temperature {t}": like(teacher ** (1 / t)) for t in (1.25, 1.5, 2, 3, 4)},
        **{
            f"{a} own answer + {1 - a:.1f} uniform": like(a * teacher + (1 - a) * uniform)
            for a in (0.3, 0.6, 0.9)
        },
        "own answer with noise of 1 in its logits": like(teacher * torch.randn_like(teacher).exp()),
        "mean of own and another image's answer": like((teacher + other) / 2),
        "0.3 own answer + 0.7 mean answer": like(0.3 * teacher + 0.7 * mean),
        "mean answer": like(mean.expand_as(teacher)),
    }


def stored(answers: TargetRows, budget: tuple[int, int, float]) -> tuple[float, DenseTargets]:
    """Payload bytes a view, and what the audited rows come back as."""
    entries, steps, tilt = budget
    spec = EncodingSpec.budgeted(
        answers.hierarchy.classes_per_hierarchy, entries=entries, prob_steps=steps, tilt=tilt
    )
    codes, sparse = encoded(answers, spec.entries, even(steps), 1.0)
    some = sparse.select(torch.arange(AUDITED))
    back = DenseTargets(probs=densify(some, answers.hierarchy), confidence=some.confidence)
    return payload(answers, spec.entries, sparse, codes), back


def figures(
    student: Tensor, exact: DenseTargets, decoded: DenseTargets, tags: Tensor, answers: TargetRows
) -> dict[str, tuple[float, float]]:
    found = _angles(student, exact, decoded, tags, answers.hierarchy)
    return {n: (float(a.median()), float(a.quantile(0.99))) for n, a in found.items()}


def shown(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f}° {pair[1]:.2f}°"


if __name__ == "__main__":
    main()
