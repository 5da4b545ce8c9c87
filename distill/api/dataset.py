"""Images and a teacher's answers as a map-style dataset, and the order to read them in."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from distill.api.shared import SharedTargets
from distill.data.images import decode_image, read_all
from distill.data.views import Size, draw_view, render_view, resized
from distill.errors import ConfigError, DataError, DataUnavailableError
from distill.targets.tensors import DenseTargets, SparseTargets, TeacherTargets

Sample = dict[str, Any]
Batch = dict[str, Any]
Transform = Callable[[UInt8[Tensor, "3 height width"]], Tensor]
PROBES = 8


class TargetDataset(Dataset[Sample]):
    """Item `row`: the view of the epoch that the teacher saw, and what it said of it.

    A dictionary: pixels, uint8 [3, height, width], or what `transform` makes of them; label, a
    class index, -1 for none; row and view, which image and which view of it; targets, the teacher's
    answers, a batch of one (None where a teacher in this process is asked by the loss).

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
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} found, expected 0 to {len(self) - 1}")
        samples = self.__getitems__([int(row)])
        if not samples:
            source = self._shared.source
            key = source.samples[int(row)].key
            raise DataError(f"{source.location}: {key!r} cannot be read")
        return samples[0]

    def __getitems__(self, rows: Sequence[int]) -> "Samples":
        """Those that can be read; torch asks for a batch so.

        Raises:
            DataError: too many cannot be.
            DataUnavailableError: they cannot be read now.
        """
        shared, source = self._shared, self._shared.source
        view, drawn = shared.view(shared.epoch)
        sizes = (self.size, *shared.teacher_sizes)
        rendered: list[list[Tensor]] = []
        readable: list[int] = []
        some = list(map(int, rows))
        for row, read in zip(some, read_all([source.samples[r] for r in some]), strict=True):
            try:
                image = decode_image(read())
            except DataUnavailableError:
                raise
            except DataError as error:
                shared.note_unreadable(row, str(error))
                continue
            params = draw_view(shared.policy, source.ids[row], drawn)
            small = [resized(image, shared.policy, size) for size in sizes]
            rendered.append(
                [render_view(each, params, size) for each, size in zip(small, sizes, strict=True)]
            )
            readable.append(row)
        seen = [torch.stack(each) for each in zip(*(views[1:] for views in rendered), strict=True)]
        answers: TeacherTargets | None = None
        if not shared.in_this_process and readable:
            answers = shared.fetch(source.ids[readable], view, seen)
            shared.note_untaught(readable, answers)
        own = answers.apart() if answers else [None] * len(readable)
        samples = Samples(answers)
        for row, (pixels, *for_teacher), said in zip(readable, rendered, own, strict=True):
            sample: Sample = {
                "pixels": self.transform(pixels) if self.transform else pixels,
                "label": int(shared.labels[row]),
                "row": row,
                "view": view,
                "targets": said,
            }
            if said is None:
                sample["teacher_pixels"] = for_teacher
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
    batch: Batch = {"pixels": torch.stack([sample["pixels"] for sample in samples])}
    for name in ("label", "row", "view"):
        batch[name] = torch.tensor([sample[name] for sample in samples])
    if "teacher_pixels" in samples[0]:
        each = zip(*(sample["teacher_pixels"] for sample in samples), strict=True)
        batch["teacher_pixels"] = [torch.stack(pixels) for pixels in each]
    whole = samples.answers if isinstance(samples, Samples) else None
    batch["targets"] = whole or _joined([sample["targets"] for sample in samples])
    return batch


def _joined(parts: Sequence[TeacherTargets | None]) -> TeacherTargets | None:
    if parts[0] is None:
        return None
    kind = type(parts[0])
    joined = kind.concatenate(parts)  # type: ignore[arg-type]
    assert isinstance(joined, DenseTargets | SparseTargets)
    return joined


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
