"""Admission: what is in flight stays within three budgets, and everybody gets a share.

A request reserves before its body is read, and more as it says what it holds; leaving its permit
gives all of it back, however it ends. All of it runs on the event loop, so nothing is locked.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from distill.wire.refusal import Refused

# A client may hold at most this many times what is free (Choudhury and Hahne 1998, dynamic queue
# length thresholds): one alone gets 4/5 of a budget, n greedy ones 4/(4n + 1) each.
SHARE_OF_FREE = 4


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The most that may be in flight: images, bytes of bodies, requests."""

    images: int
    bytes: int
    requests: int


@dataclass(eq=False)
class Permit:
    """What one request holds."""

    admission: "Admission"
    client: str
    held: Counter[str] = field(default_factory=Counter)

    def reserve(self, resource: str, amount: int) -> None:
        """More of a budget.

        Raises:
            Refused: 429, it would be over.
        """
        self.admission.take(resource, amount, self.client)
        self.held[resource] += amount


@dataclass(eq=False)
class Admission:
    """fair: clients compete for the budgets; else there is one that may have all of them.

    retry_after_s: seconds until there should be room.
    """

    budgets: Budgets
    fair: bool = False
    retry_after_s: Callable[[], int] = lambda: 1
    in_flight: Counter[str] = field(default_factory=Counter)
    _of_client: Counter[tuple[str, str]] = field(default_factory=Counter)

    @contextmanager
    def admit(self, client: str, body_bytes: int) -> Iterator[Permit]:
        """A permit for one request of at least one image.

        Raises:
            Refused: 429.
        """
        permit = Permit(self, client)
        try:
            permit.reserve("requests", 1)
            permit.reserve("bytes", body_bytes)
            permit.reserve("images", 1)
            yield permit
        finally:
            for resource, amount in permit.held.items():
                self.in_flight[resource] -= amount
                self._of_client[client, resource] -= amount
                if not self._of_client[client, resource]:
                    del self._of_client[client, resource]

    def take(self, resource: str, amount: int, client: str) -> None:
        """Used by `Permit.reserve`."""
        budget = getattr(self.budgets, resource)
        free = budget - self.in_flight[resource]
        held_by_client = self._of_client[client, resource]
        over_share = self.fair and held_by_client and held_by_client + amount > SHARE_OF_FREE * free
        if amount > free or over_share:
            if over_share and amount <= free:
                raise self._full(resource, amount, held_by_client, "of this key ")
            raise self._full(resource, amount, self.in_flight[resource], "")
        self.in_flight[resource] += amount
        self._of_client[client, resource] += amount

    def _full(self, resource: str, amount: int, held: int, whose: str) -> Refused:
        seconds = self.retry_after_s()
        return Refused(
            429,
            f"{held} {resource} {whose}in flight, no room for {amount} more of "
            f"{getattr(self.budgets, resource)}; try again in {seconds} s",
            resource,
            retry_after_s=seconds,
        )

    def require_room(self) -> None:
        """Raises Refused with 429 where not even one image has room: before anything else."""
        for resource in ("images", "requests"):
            if self.in_flight[resource] >= getattr(self.budgets, resource):
                raise self._full(resource, 1, self.in_flight[resource], "")

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not any(self.in_flight[each.name] for each in fields(Budgets))
