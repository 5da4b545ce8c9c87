"""Weight files: found, read without executing anything in them, and loaded whole.

One reader for teachers, --init, evaluate and finetune. It takes what timm takes: safetensors, torch
files of timm's train.py with their EMA weights, names with the prefixes of wrappers, files that an
architecture's own filter of timm converts, folders, hf-hub: and local-dir:.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from distill.errors import ConfigError, first_line
from distill.models.torch_files import load_torch_file

EXPECTED = "expected .safetensors, a torch file of a state dict, or a folder with one"
HUB, LOCAL = ("hf-hub:", "hf_hub:"), "local-dir:"
# In a folder: of our runs, of timm's and Hugging Face's exports, of timm's train.py.
FILES = ("student.safetensors", "model.safetensors", "pytorch_model.bin", "model_best.pth.tar")
# In a torch file, in the order in which timm takes them.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """state: tensors by name. notes: what was done with the file, for its user.

    architecture: timm's name, where the file says it.
    """

    path: Path
    state: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    architecture: str | None = None


def find_weights(where: str | Path) -> Path:
    """The weight file that is meant by a file, a folder, local-dir:FOLDER or hf-hub:OWNER/NAME.

    Raises:
        ConfigError: there is none, or the hub does not answer.
    """
    text = str(where)
    if text.startswith(HUB):
        return _from_hub(text.partition(":")[2])
    path = Path(text.removeprefix(LOCAL))
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"{path}: no such weight file; {EXPECTED}")
        return path
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        started = (path / "run.json").exists()
        raise ConfigError(
            f"{path}: {'a run that is not finished' if started else 'no weights'} found, expected "
            + (
                "a finished run; run its command again"
                if started
                else f"one of {', '.join(FILES)}; pass the --out of a training command"
            )
        )
    return found


def read_weights(path: Path) -> Weights:
    """A state dict, of a file that `find_weights` gave.

    Raises:
        ConfigError: the file is missing or of another form. Nothing in it is executed.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such weight file; {EXPECTED}")
    notes: list[str] = []
    try:
        if path.suffix.lower() == ".safetensors":
            loaded: Any = safetensors.torch.load_file(path)
        else:
            loaded = load_torch_file(path)
        named = loaded.get("arch") if isinstance(loaded, dict) else None
        wrapper = next((w for w in WRAPPERS if isinstance(_item(loaded, w), dict)), None)
        if wrapper:
            others = [w for w in WRAPPERS if w != wrapper and isinstance(_item(loaded, w), dict)]
            notes += [f"{wrapper} taken, not {', '.join(others)}"] if others else []
            loaded = loaded[wrapper]
        if not isinstance(loaded, dict) or not loaded:
            raise ValueError("no state dict in it")
        strange = [name for name, value in loaded.items() if not isinstance(value, Tensor)]
        if strange:
            raise ValueError(f"{strange[0]} is no tensor, so it is no state dict")
        odd = [n for n, t in loaded.items() if t.layout != torch.strided or t.is_quantized]
        if odd:
            raise ValueError(f"{odd[0]} is sparse or quantised, expected plain tensors")
        state = {without_prefixes(str(name)): value for name, value in loaded.items()}
        if len(state) < len(loaded):
            raise ValueError("two tensors have one name but for module. or _orig_mod.")
    except Exception as error:  # parsers raise whatever hostile bytes provoke
        raise ConfigError(
            f"{path}: not readable as weights ({first_line(error)}); {EXPECTED}"
        ) from error
    return Weights(
        path=path,
        state=state,
        notes=tuple(notes),
        architecture=named if isinstance(named, str) else None,
    )


def fitted(weights: Weights, model: nn.Module) -> Weights:
    """The same weights by the model's own names, where a wrapper or timm's filter explains them.

    Of a file in which the model is a part (`model.…`, as Lightning has it), that part. Else what
    the filter of the architecture in timm makes of it, as the factory of timm would.
    """
    expected, state, notes = model.state_dict(), dict(weights.state), list(weights.notes)
    inside = {
        without_prefixes(name.removeprefix("model.")): tensor
        for name, tensor in state.items()
        if name.startswith("model.")
    }
    if len(expected.keys() & inside.keys()) > len(expected.keys() & state.keys()):
        left = len(state) - len(inside)
        notes += [f"{left} tensors outside model. left out"] if left else []
        state = inside
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert and not _fits(state, expected):
        try:
            converted = convert(dict(state), model)
        except Exception:  # it is for files of its own; what does not fit is said by load_weights
            converted = state
        if _distance(converted, expected) < _distance(state, expected):
            state = converted
            notes.append("names or shapes converted as timm does for this architecture")
    return replace(weights, state=state, notes=tuple(notes))


def load_weights(model: nn.Module, weights: Weights) -> Weights:
    """Fill the model with those weights, all of them, in the model's own dtype; what was fitted.

    Raises:
        ConfigError: a tensor is missing, left over, of another shape, or not finite; says which.
    """
    path, weights = weights.path, fitted(weights, model)
    expected, state = model.state_dict(), weights.state
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    for name in sorted(expected.keys() & state.keys()):
        if expected[name].shape != state[name].shape:
            raise ConfigError(
                f"{path}: {name} is {list(state[name].shape)}, "
                f"expected {list(expected[name].shape)}; "
                "these weights are of another model or another label set: check the model's name "
                "and --label-set"
            )
        if expected[name].is_floating_point() and not state[name].is_floating_point():
            raise ConfigError(
                f"{path}: {name} is {state[name].dtype}, expected floating-point numbers; save the "
                "weights as they were trained"
            )
    if missing or unknown:
        raise ConfigError(
            f"{path}: {len(missing)} tensors missing (first: {', '.join(missing[:2]) or 'none'}), "
            f"{len(unknown)} not of this model (first: {', '.join(unknown[:2]) or 'none'}); "
            "expected a state dict of exactly this timm model: check the model's name"
        )
    model.load_state_dict(dict(state))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError(
                f"{path}: {name} contains NaN or Inf, expected finite numbers; the training that "
                "wrote it diverged: take an earlier checkpoint"
            )
    return weights


def with_classifier(
    weights: Weights,
    model: nn.Module,
    classifier: Sequence[str],
    known: Sequence[str] | None,
    wanted: Sequence[str],
) -> Weights:
    """The weights with a classifier for `wanted`: rows of the same classes, or a fresh one.

    classifier: names of its modules. known: the classes of the weights, row by row; None where
    nothing says them. Rows are kept only where every wanted class is known, by its name: a number
    of classes alone says nothing.
    """
    weights = fitted(weights, model)
    fresh, state = model.state_dict(), dict(weights.state)
    heads = [n for n in fresh if n.startswith(tuple(f"{module}." for module in classifier))]
    place = {synset: row for row, synset in enumerate(known or ())}
    rows = [place[synset] for synset in wanted if synset in place]
    whole = all(n in state and len(state[n]) == len(place) for n in heads)
    if heads and whole and len(rows) == len(wanted):
        picked = torch.tensor(rows)
        state |= {name: state[name][picked] for name in heads}
        same = list(known or ()) == list(wanted)
        note = "classifier kept" if same else f"classifier: {len(rows)} of {len(place)} rows kept"
        return replace(weights, state=state, notes=(*weights.notes, note))
    unused = [n for n in state if n.startswith(tuple(f"{module}." for module in classifier))]
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    why = (
        f"its {len(place)} classes lack {len(wanted) - len(rows)} of {len(wanted)}"
        if place
        else "nothing says its classes"
    )
    note = f"classifier new: {why}"
    return replace(
        weights,
        state={**state, **{name: fresh[name] for name in heads}},
        notes=(*weights.notes, note),
    )


def _item(loaded: Any, key: str) -> Any:
    return loaded.get(key) if isinstance(loaded, dict) else None


def without_prefixes(name: str) -> str:
    """A tensor's name in the model itself, not in DDP's or torch.compile's wrapper."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return _distance(state, expected) == 0


def _distance(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """How many tensors are missing, left over or of another shape."""
    other = sum(state[n].shape != expected[n].shape for n in state.keys() & expected.keys())
    return len(state.keys() ^ expected.keys()) + other


def _from_hub(name: str) -> Path:
    """The weights of a model on the hub, and its config.json beside them."""
    repo, _, revision = name.partition("@")
    try:
        hf_hub_download(repo, "config.json", revision=revision or None)
        for file in FILES[1:3]:
            try:
                return Path(hf_hub_download(repo, file, revision=revision or None))
            except Exception:
                if file == FILES[2]:
                    raise
    except Exception as error:  # the hub client raises whatever the network does
        raise ConfigError(
            f"hf-hub:{name}: cannot be downloaded ({first_line(error)}), expected a network or a "
            "cached copy of a timm model; fetch its folder elsewhere and pass that"
        ) from error
    raise ConfigError(f"hf-hub:{name}: no weights found; {EXPECTED}")
