"""Images and a teacher's answers as a map-style dataset, and the order to read them in."""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from distill.api.shared import SharedTargets
from distill.data.drawn import read_views
from distill.data.views import Size
from distill.errors import ConfigError, DataError, DataUnavailableError, first_line
from distill.targets.tensors import DenseTargets, SparseTargets, TeacherTargets

Sample = dict[str, Any]
Batch = dict[str, Any]
Transform = Callable[[UInt8[Tensor, "3 height width"]], Tensor]
CALLS = 100  # of a transform, to see whether it is random


class TargetDataset(Dataset[Sample]):
    """Item `row`: the view of the epoch that the teacher saw, and what it said of it.

    A dictionary: pixels, uint8 [3, height, width], or what `transform` makes of them, of a clip
    those of its frames one after another, [3 · frames, height, width]; label, a
    class index, -1 for none; row and view, which image and which view of it; identity, of whose
    answers; targets, these, a batch of one (where a teacher in this process is asked by the loss,
    teacher_pixels instead).

    A DataLoader asks for whole batches, of which images that cannot be read are left out: the
    answers to a batch cost one look-up.
    """

    def __init__(self, shared: SharedTargets, size: Size, transform: Transform | None) -> None:
        self._shared, self.size, self.transform = shared, size, transform
        if transform:
            _require_normalising(transform, size)

    def __len__(self) -> int:
        return len(self._shared.source)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's view; workers that persist see it too."""
        self._shared.set_epoch(epoch)

    def __getitem__(self, row: int) -> Sample:
        """One image.

        Raises:
            IndexError: there is no such row.
            DataError: it cannot be read.
        """
        samples = self.__getitems__([row])
        if not samples:
            source = self._shared.source
            key = source.samples[int(row)].key
            raise DataError(f"{source.location}: {key!r} cannot be read")
        return samples[0]

    def __getitems__(self, rows: Sequence[int]) -> "Samples":
        """Those that can be read; torch asks for a batch so.

        Raises:
            IndexError: there is no such row.
            DataError: too many cannot be.
            DataUnavailableError: they cannot be read now.
        """
        shared, source = self._shared, self._shared.source
        view, drawn = shared.view(shared.epoch)
        sizes = (self.size, *shared.teacher_sizes)
        rendered: list[list[Tensor]] = []
        readable: list[int] = []
        some = [operator.index(row) for row in rows]
        for row in some:
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} found, expected 0 to {len(self) - 1}")
        reads = read_views(source, shared.policy, [(row, (drawn,)) for row in some])
        for row, read in zip(some, reads, strict=True):
            try:
                views = read()
            except DataUnavailableError:
                raise
            except DataError as error:
                shared.note_unreadable(row, str(error))
                continue
            rendered.append([pixels[0].contiguous() for pixels in views.pixels_at(sizes)])
            readable.append(row)
        seen = [torch.stack(each) for each in zip(*(views[1:] for views in rendered), strict=True)]
        answers: TeacherTargets | None = None
        if not shared.in_this_process and readable:
            answers = shared.fetch(source.ids[readable], view, seen)
            shared.note_untaught(readable, answers)
        own = answers.apart() if answers else [None] * len(readable)
        samples = Samples()
        for row, (pixels, *for_teacher), said in zip(readable, rendered, own, strict=True):
            samples.append(
                {
                    "pixels": self._transformed(pixels),
                    "label": int(shared.labels[row]),
                    "row": row,
                    "view": view,
                    "identity": shared.identity,
                    **({"targets": said} if said else {"teacher_pixels": for_teacher}),
                }
            )
        samples.together, samples.apart = answers, [sample.get("targets") for sample in samples]
        return samples

    def _transformed(self, pixels: Tensor) -> Tensor:
        if not self.transform:
            return pixels
        return torch.cat([self.transform(frame) for frame in pixels.split(3)])


class Samples(list[Sample]):
    """Samples whose answers came together, which need not be joined again."""

    together: TeacherTargets | None = None
    apart: Sequence[TeacherTargets | None] = ()


def collated(samples: Sequence[Sample]) -> Batch:
    """What torch's own `default_collate` makes of them, but faster.

    Raises:
        DataError: there is none, as where no image of a batch can be read.
    """
    if not samples:
        raise DataError("a batch without images found, expected one that can be read at least")
    whole = None
    if isinstance(samples, Samples) and len(samples) == len(samples.apart):
        pairs = zip(samples, samples.apart, strict=True)
        if all(sample.get("targets") is said for sample, said in pairs):
            whole = samples.together
    if whole is None:
        return dict(default_collate(list(samples)))
    batch: Batch = {"pixels": torch.stack([sample["pixels"] for sample in samples])}
    for name in ("label", "row", "view"):
        batch[name] = torch.tensor([sample[name] for sample in samples])
    return {**batch, "identity": [sample["identity"] for sample in samples], "targets": whole}


def _joined(parts: Sequence[TeacherTargets], **_: Any) -> TeacherTargets:
    kind: Any = type(parts[0])
    joined: TeacherTargets = kind.concatenate(parts)
    return joined


# So that a DataLoader without a collate_fn works, too.
default_collate_fn_map.update({SparseTargets: _joined, DenseTargets: _joined})


class TargetSampler(Sampler[int]):
    """Every row once an epoch; of several processes each takes its part of the same order.

    Where their number does not divide the rows, the first of the order come twice, as with
    torch's DistributedSampler, so that all have as many.
    """

    def __init__(
        self, shared: SharedTargets, rank: int | None, world: int | None, seed: int
    ) -> None:
        running = dist.is_available() and dist.is_initialized()
        self._shared, self._rows = shared, len(shared.source)
        self.rank = rank if rank is not None else dist.get_rank() if running else 0
        self.world = world if world is not None else dist.get_world_size() if running else 1
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world} found, expected less")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed} found, expected 0 to 2^64 - 1")
        self._order = shared.answers.sample_order(self._rows, seed)

    def __len__(self) -> int:
        return -(-self._rows // self.world)

    def set_epoch(self, epoch: int) -> None:
        """Choose order and view; Lightning and accelerate call it by themselves."""
        self._shared.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Rows of the epoch."""
        # By now a DataLoader has made its processes: a thread does no harm any more.
        self._shared.prepare_next()
        order = self._order.epoch(self._shared.epoch)
        padded = np.resize(order, len(self) * self.world)
        yield from padded[self.rank :: self.world].tolist()


def _require_normalising(transform: Transform, size: Size) -> None:
    """That it changes values alone: each pixel's by itself, and always in the same way.

    Raises:
        ConfigError: it does not.
    """
    random = torch.Generator().manual_seed(0)
    view = torch.randint(0, 256, (3, *size), generator=random, dtype=torch.uint8)
    try:
        first = transform(view.clone())
    except Exception as error:  # other people's code raises what it likes
        raise ConfigError(
            f"transform cannot take a view ({first_line(error)}), expected one that takes a uint8 "
            "tensor [3, height, width], as torchvision.transforms.v2 does; leave ToTensor out"
        ) from error
    if not isinstance(first, Tensor) or first.ndim != 3 or tuple(first.shape[-2:]) != size:
        found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ConfigError(
            f"transform gives {found} for a view of {tuple(view.shape)}, expected a tensor [C, "
            "height, width] of the same height and width; choose dataset(size=…)"
        )
    if not first.isfinite().all():
        raise ConfigError("transform gives NaN or Inf, expected numbers; look at its mean and std")
    for row, column in ((0, 0), (size[0] // 3, size[1] // 4), (size[0] - 1, size[1] // 2)):
        other = view.clone()
        other[:, row, column] = 255 - other[:, row, column]
        changed = (transform(other) != first).any(0).nonzero().tolist()
        if changed != [[row, column]]:
            raise ConfigError(f"transform moves, mixes or hides pixels, {_NORMALISES}")
    for _ in range(CALLS):
        if not torch.equal(transform(view.clone()), first):
            raise ConfigError(f"transform gives other values each time, {_NORMALISES}")


_NORMALISES = (
    "expected one that only normalises: the student must see what the teacher saw. Other crops "
    "than the teacher's are not consistent teaching but independent noise (Beyer et al. 2021, "
    "arXiv 2106.05237), which costs accuracy; for more variety precompute more views. Whoever "
    "means it changes batch['pixels'] in the loop"
)
