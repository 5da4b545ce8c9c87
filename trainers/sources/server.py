"""A teacher server as a source of targets; requests for announced batches run ahead of time."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from distill.data.order import SampleOrder
from distill.data.sample_ids import SampleIds, samples_digest
from distill.data.source import ImageSource
from distill.data.view_policy import ViewPolicy
from distill.data.views import Size
from distill.errors import ConfigError, StoreMismatchError
from distill.per_process import per_process
from distill.targets.protocol import ReplayProofs
from distill.targets.tensors import SparseTargets, View
from distill.wire.client import TeacherClient


class ServerTargets:
    """client: closed with this. ahead: how many batches are requested before their turn.

    It can be pickled, and used by processes that are forked: each has its own connections.
    """

    def __init__(self, client: TeacherClient, *, ahead: int = 4) -> None:
        self.client, self.ahead = client, ahead
        self.location, self.hierarchy = client.location, client.hierarchy
        self.identity, self.answers = client.identity, client.answers
        self._samples = client.samples
        self.fidelity: Mapping[str, Any] | None = None
        self.rows: int = self._samples["dataset"]["rows"] if self._samples else 0
        # Of an ensemble the largest: the server squishes it for the others.
        self.sizes: tuple[Size, ...] = () if self._samples else (max(client.sizes),)
        self.policy = ViewPolicy.from_json(self._samples["policy"]) if self._samples else None

    def __reduce__(self) -> tuple[Any, ...]:
        client = self.client
        return _connected_again, (self.location, client.api_key, client.fingerprint, self.ahead)

    @per_process
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max(1, self.ahead), thread_name_prefix="targets")

    @per_process
    def _announced(self) -> dict[tuple[bytes, bytes], "Future[SparseTargets]"]:
        return {}

    @property
    def input_size(self) -> Size:
        """Height and width that the teacher sees."""
        return self.client.input_size

    def require_dataset(self, source: ImageSource, labels: NDArray[np.int64]) -> None:
        """See `distill.targets.protocol`."""
        if source.frames and not self._samples:
            raise ConfigError(
                f"{self.location}: found with clips, expected images, which a teacher server "
                "answers for; precompute a store of the clips"
            )
        digest = samples_digest(source.ids, labels)
        if self._samples and self._samples["dataset"]["digest"] != digest:
            theirs = self._samples["dataset"]
            raise StoreMismatchError(
                f"{self.location}: dataset {theirs['digest'][:12]} ({theirs['rows']} rows) found, "
                f"this run expects {digest[:12]} ({len(source)} rows); train on the data that the "
                "server was started with"
            )

    def replay_proofs(self) -> ReplayProofs | None:
        """What the server draws of some samples; None where it draws nothing."""
        if not self._samples:
            return None
        document = self.client.replay()
        return document["proofs"] and ReplayProofs(
            where=self.location,
            proofs=document["proofs"],
            views=tuple(document["views"]),
            size=self.input_size,
            provenance=document["provenance"],
        )

    def view(self, epoch: int) -> int:
        """See `distill.targets.protocol`."""
        views = self._samples and self._samples["views"]
        return epoch % views if views else epoch

    def drawn_view(self, epoch: int) -> int:
        """See `distill.targets.protocol`."""
        return self.view(epoch) + (self._samples["first_view"] if self._samples else 0)

    def sample_order(self, rows: int, seed: int) -> SampleOrder:
        """Any order is as fast."""
        return SampleOrder(rows, seed)

    def prepare(self, epoch: int) -> None:
        """The server knows what to do."""

    def announce(
        self,
        sample_ids: SampleIds,
        view: View,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> None:
        """Ask now, for a `fetch` that is coming."""
        key = sample_ids.tobytes(), np.asarray(view).tobytes()
        if key not in self._announced:
            self._announced[key] = self._threads.submit(self._ask, sample_ids, view, pixels)

    def fetch(
        self,
        sample_ids: SampleIds,
        view: View,
        pixels: Sequence[UInt8[Tensor, "batch channels _ _"]] = (),
    ) -> SparseTargets:
        """See `distill.targets.tensors.TargetSource`."""
        key = sample_ids.tobytes(), np.asarray(view).tobytes()
        announced = self._announced.pop(key, None)
        return announced.result() if announced else self._ask(sample_ids, view, pixels)

    def close(self) -> None:
        """Close the client; requests in progress give up."""
        self.client.close()
        self._threads.shutdown(cancel_futures=True)

    def _ask(self, sample_ids: SampleIds, view: View, pixels: Sequence[Tensor]) -> SparseTargets:
        if not self.sizes:
            return self.client.infer_samples(sample_ids, view)
        if not len(pixels):
            raise ValueError("this server has no images: pass pixels of its size")
        return self.client.infer_images(pixels[0].permute(0, 2, 3, 1).contiguous().numpy())


def _connected_again(
    location: str, api_key: str | None, fingerprint: str, ahead: int
) -> ServerTargets:
    """In another process, to a server of the same teacher."""
    client = TeacherClient(location, api_key=api_key, fingerprint=fingerprint)
    return ServerTargets(client, ahead=ahead)
