"""Images and a teacher's answers as a map-style dataset, and the order to read them in."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from distill.data.images import decode_image, read_all
from distill.data.views import Size, draw_view, render_view, resized
from distill.errors import ConfigError, DataError, DataUnavailableError
from distill.targets.tensors import DenseTargets, SparseTargets, TeacherTargets

if TYPE_CHECKING:
    from distill.api.targets import Targets

Sample = dict[str, Any]
Batch = dict[str, Any]
Transform = Callable[[UInt8[Tensor, "3 height width"]], Tensor]
PROBES = 8


class TargetDataset(Dataset[Sample]):
    """Item `row`: the view of the epoch that the teacher saw, and what it said of it.

    pixels: uint8 [3, height, width], or what `transform` makes of them. label: class index, -1 for
    none. row, view: which image and which view. targets: the teacher's answers, a batch of one.

    A DataLoader asks for whole batches, of which images that cannot be read are left out: the
    answers to a batch cost one look-up.
    """

    def __init__(self, targets: "Targets", size: Size, transform: Transform | None) -> None:
        self.targets, self.size, self.transform = targets, size, transform
        if transform:
            _require_normalising(transform, size)

    def __len__(self) -> int:
        return len(self.targets)

    def set_epoch(self, epoch: int) -> None:
        """See `Targets.set_epoch`: workers that persist see it too."""
        self.targets.set_epoch(epoch)

    def __getitem__(self, row: int) -> Sample:
        """One image.

        Raises:
            IndexError: there is no such row.
            DataError: it cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} found, expected 0 to {len(self) - 1}")
        samples = self.__getitems__([int(row)])
        if not samples:
            key = self.targets.source.samples[int(row)].key
            raise DataError(f"{self.targets.source.location}: {key!r} cannot be read")
        return samples[0]

    def __getitems__(self, rows: Sequence[int]) -> "Samples":
        """Those that can be read; torch asks for a batch so.

        Raises:
            DataError: too many cannot be.
            DataUnavailableError: they cannot be read now.
        """
        targets, source = self.targets, self.targets.source
        view, drawn = targets.view(targets.epoch)
        sizes = (self.size, *targets.teacher_sizes)
        rendered: list[list[Tensor]] = []
        readable: list[int] = []
        some = list(map(int, rows))
        for row, read in zip(some, read_all([source.samples[r] for r in some]), strict=True):
            try:
                image = decode_image(read())
            except DataUnavailableError:
                raise
            except DataError as error:
                targets.note_unreadable(row, str(error))
                continue
            params = draw_view(targets.policy, source.ids[row], drawn)
            small = [resized(image, targets.policy, size) for size in sizes]
            rendered.append(
                [render_view(each, params, size) for each, size in zip(small, sizes, strict=True)]
            )
            readable.append(row)
        seen = [torch.stack(each) for each in zip(*(views[1:] for views in rendered), strict=True)]
        answers: TeacherTargets | None = None
        if not targets.in_this_process and readable:
            answers = targets.answers.fetch(source.ids[readable], view, seen)
        samples = Samples(answers)
        for i, row in enumerate(readable):
            pixels = rendered[i][0]
            sample: Sample = {
                "pixels": self.transform(pixels) if self.transform else pixels,
                "label": torch.tensor(int(targets.labels[row])),
                "row": torch.tensor(row),
                "view": torch.tensor(view),
            }
            if answers is None:
                sample["teacher_pixels"] = rendered[i][1:]
            else:
                sample["targets"] = answers.between(i, i + 1)
            samples.append(sample)
        return samples


class Samples(list[Sample]):
    """Samples whose answers came together."""

    def __init__(self, answers: TeacherTargets | None) -> None:
        super().__init__()
        self.answers = answers


def collated(samples: Sequence[Sample]) -> Batch:
    """Tensors of samples, stacked; `targets` as one object with `to` and `pin_memory`.

    Raises:
        DataError: there is none, as where no image of a batch can be read.
    """
    if not samples:
        raise DataError("no image of a batch can be read, expected one; repair the data")
    batch: Batch = {
        name: torch.stack([sample[name] for sample in samples])
        for name in ("pixels", "label", "row", "view")
    }
    if "teacher_pixels" in samples[0]:
        each = zip(*(sample["teacher_pixels"] for sample in samples), strict=True)
        batch["teacher_pixels"] = [torch.stack(pixels) for pixels in each]
        batch["targets"] = None
    elif isinstance(samples, Samples) and samples.answers is not None:
        batch["targets"] = samples.answers
    else:
        batch["targets"] = _joined([sample["targets"] for sample in samples])
    return batch


def _joined(parts: Sequence[TeacherTargets]) -> TeacherTargets:
    kind = type(parts[0])
    joined = kind.concatenate(parts)  # type: ignore[arg-type]
    assert isinstance(joined, DenseTargets | SparseTargets)
    return joined


class TargetSampler(Sampler[int]):
    """Every row once an epoch; of several processes each takes its part of the same order.

    Where their number does not divide the rows, the first of the order come twice, as with
    torch's DistributedSampler, so that all have as many.
    """

    def __init__(self, targets: "Targets", rank: int | None, world: int | None, seed: int) -> None:
        running = dist.is_available() and dist.is_initialized()
        self.targets = targets
        self.rank = rank if rank is not None else dist.get_rank() if running else 0
        self.world = world if world is not None else dist.get_world_size() if running else 1
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world} found, expected less")
        self._order = targets.answers.sample_order(len(targets), seed)

    def __len__(self) -> int:
        return -(-len(self.targets) // self.world)

    def set_epoch(self, epoch: int) -> None:
        """See `Targets.set_epoch`; Lightning and accelerate call it by themselves."""
        self.targets.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Rows of the epoch."""
        # By now a DataLoader has made its processes: a thread does no harm any more.
        self.targets.prepare_next()
        order = self._order.epoch(self.targets.epoch)
        padded = np.resize(order, len(self) * self.world)
        yield from padded[self.rank :: self.world].tolist()


def _require_normalising(transform: Transform, size: Size) -> None:
    """That it changes values alone: each pixel's by itself, and always in the same way.

    Raises:
        ConfigError: it does not.
    """
    random = torch.Generator().manual_seed(0)
    view = torch.randint(0, 256, (3, *size), generator=random, dtype=torch.uint8)
    first = transform(view.clone())
    if not isinstance(first, Tensor) or tuple(first.shape[-2:]) != size:
        found = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ConfigError(
            f"transform gives {found} for a view of {tuple(view.shape)}, expected a tensor of the "
            "same height and width; choose dataset(size=…)"
        )
    for _ in range(PROBES):
        for flipped in ([-1], [-2]):
            again = transform(view.flip(flipped))
            if again.shape != first.shape or not torch.allclose(again, first.flip(flipped)):
                raise ConfigError(
                    "transform moves pixels, mixes them or is random, expected one that only "
                    "normalises: the student must see what the teacher saw. Other crops than the "
                    "teacher's are not consistent teaching, but independent noise (Beyer et al. "
                    "2021, arXiv 2106.05237), which costs accuracy; for more variety precompute "
                    "more views. Whoever means it changes batch['pixels'] in the loop"
                )
