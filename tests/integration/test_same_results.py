"""Results that no change of the code may move: a store's arrays and the losses of training.

tests/golden/results.json and .npz hold them. On the machine type that recorded them they must agree
bit for bit; other processors and other versions of torch round differently in the last bit.
`DISTILL_RECORD=1 pytest tests/integration/test_same_results.py` records them anew, which needs a
reason in docs/decisions.md.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
import torchvision
from same_store import arrays

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
RECORD = bool(os.environ.get("DISTILL_RECORD"))


def _instructions() -> str:
    """A digest of what the processor can do, by which libraries choose their code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest()[:12]


MACHINE = {
    "processor": torch.backends.cpu.get_cpu_capability(),
    "instructions": _instructions(),
    "torch": torch.__version__,
    "torchvision": torchvision.__version__,
    "pillow": PIL.__version__,
}
TAUGHT = ("--targets", "STORE", "--kd-weight")
SEMANTIC = ("--scheme", "semantic", "-o", "hierarchy_weights=paper")
RUNS: dict[str, tuple[str, ...]] = {
    "semantic with kd": (*SEMANTIC, *TAUGHT, "100", "-o", "divergence=mse"),
    "semantic without kd": SEMANTIC,
    "single-label with kd": ("--scheme", "single-label", *TAUGHT, "300", "-o", "divergence=mse"),
    "multi-label with kd": ("--scheme", "multi-label", *TAUGHT, "10"),
    "semantic with kl": (*SEMANTIC, *TAUGHT, "100"),
}


def golden() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((GOLDEN / "results.json").read_text())
    return document


def test_a_precompute_gives_the_same_arrays(
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    ran = distill(*precompute_command(store, "--views", 2, "--batch-size", 8))
    assert ran.code == 0, ran.err
    found = arrays(store)
    # Recorded of format 2, where this was an array of its own.
    valid = found["confidence"][..., 0] > 0
    residual = found["confidence"].astype(np.int64) - 1
    found["confidence"] = np.where(valid[..., None], residual, 0)
    found["valid"] = valid
    if RECORD:
        np.savez_compressed(GOLDEN / "results.npz", **found)
        return
    with np.load(GOLDEN / "results.npz") as expected:
        assert {*expected} == {*found}
        for name, values in found.items():
            if golden()["machine"] == MACHINE or values.dtype == np.bool_:
                np.testing.assert_array_equal(values, expected[name], name)
            elif name in ("prob", "confidence", "sq_norm"):
                apart = np.abs(values.astype(np.int64) - expected[name])
                assert np.quantile(apart, 0.99) <= 1, name


@pytest.mark.parametrize("name", RUNS)
def test_training_gives_the_same_losses(
    name: str,
    distill,  # type: ignore[no-untyped-def]
    precompute_command: Callable[..., list[str]],
    train: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    store = tmp_path / "store"
    assert distill(*precompute_command(store, "--views", 2, "--batch-size", 8)).code == 0
    options = [str(store) if word == "STORE" else word for word in RUNS[name]]
    if "--targets" not in options:
        options += ["--label-set", "plane-figures"]
    ran = distill(*train("run", *options))
    assert ran.code == 0, ran.err
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    losses = {key: [epoch.get(key) for epoch in history] for key in history[0] if "loss" in key}
    if RECORD:
        _record(name, losses)
        return
    exact = golden()["machine"] == MACHINE
    expected = golden()["losses"][name]
    assert {*losses} == {*expected}
    for key, values in losses.items():
        if exact:
            assert values == expected[key], key
        else:
            pair = np.array([values, expected[key]], np.float64)  # None, without targets, is NaN
            np.testing.assert_allclose(*pair, rtol=1e-3, err_msg=key)


def _record(name: str, losses: dict[str, list[float]]) -> None:
    path = GOLDEN / "results.json"
    document = json.loads(path.read_text()) if path.exists() else {"losses": {}}
    document["machine"] = MACHINE
    document["losses"][name] = losses
    path.write_text(json.dumps(document, indent=1) + "\n")
