"""Admission: what is in flight stays within three budgets, and everybody gets a share.

A request reserves before its body is read, and more as it says what it holds; leaving its permit
gives all of it back, however it ends. A client that announces a body and does not send it keeps its
room only until somebody else needs it. All of it runs on the event loop, so nothing is locked.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from distill.wire.refusal import Refused, too_slow

# A client may hold at most this many times what is free (Choudhury and Hahne 1998, dynamic queue
# length thresholds): one alone gets 4/5 of a budget, n greedy ones 4/(4n + 1) each.
SHARE_OF_FREE = 4

# A body that comes more slowly, after its first second, is cut off where others need the room.
SLOW_AFTER_S, SLOW_BYTES_PER_S = 1.0, 2**17


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The most that may be in flight: images, bytes of bodies, requests."""

    images: int
    bytes: int
    requests: int


@dataclass(eq=False)
class Permit:
    """What one request holds. arrived: bytes of its body, so far."""

    admission: "Admission"
    client: str
    held: Counter[str] = field(default_factory=Counter)
    arrived: int = 0

    def reserve(self, resource: str, amount: int) -> None:
        """More of a budget.

        Raises:
            Refused: 429, it would be over.
        """
        self.admission.take(resource, amount, self.client)
        self.held[resource] += amount

    @contextmanager
    def receiving(self, limit: asyncio.Timeout) -> Iterator[None]:
        """While the body is read, within that limit.

        Raises:
            Refused: 408, it came too slowly while others needed the room.
        """
        bodies = self.admission.bodies
        bodies[self] = _Body(limit, time.monotonic())
        try:
            yield
        except asyncio.CancelledError:
            if self not in bodies:  # cut off
                raise too_slow() from None
            raise
        finally:
            bodies.pop(self, None)


@dataclass(frozen=True)
class _Body:
    """One that is being read."""

    limit: asyncio.Timeout
    began: float

    def is_slow(self, arrived: int) -> bool:
        late_s = time.monotonic() - self.began - SLOW_AFTER_S
        return arrived < late_s * SLOW_BYTES_PER_S


@dataclass(eq=False)
class Admission:
    """fair: clients compete for the budgets; else there is one that may have all of them.

    retry_after_s: seconds until there should be room.
    """

    budgets: Budgets
    fair: bool = False
    retry_after_s: Callable[[], int] = lambda: 1
    in_flight: Counter[str] = field(default_factory=Counter)
    bodies: dict[Permit, _Body] = field(default_factory=dict)
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
            self._give_back(permit)

    def _give_back(self, permit: Permit) -> None:
        for resource, amount in permit.held.items():
            self.in_flight[resource] -= amount
            self._of_client[permit.client, resource] -= amount
            if not self._of_client[permit.client, resource]:
                del self._of_client[permit.client, resource]
        permit.held.clear()

    def take(self, resource: str, amount: int, client: str) -> None:
        """Used by `Permit.reserve`."""
        self._make_room(resource, amount, client)
        self.in_flight[resource] += amount
        self._of_client[client, resource] += amount

    def _make_room(self, resource: str, amount: int, client: str) -> None:
        while refusal := self._refusal(resource, amount, client):
            if not self._cut_off_slow_body(resource):
                raise refusal

    def _refusal(self, resource: str, amount: int, client: str) -> Refused | None:
        free = getattr(self.budgets, resource) - self.in_flight[resource]
        if amount > free:
            return self._full(resource, amount, self.in_flight[resource], "")
        held_by_client = self._of_client[client, resource]
        if self.fair and held_by_client and held_by_client + amount > SHARE_OF_FREE * free:
            return self._full(resource, amount, held_by_client, "of this key ")
        return None

    def _cut_off_slow_body(self, resource: str) -> bool:
        """Whether there was one that held some of it."""
        for permit, body in self.bodies.items():
            if permit.held[resource] and body.is_slow(permit.arrived):
                del self.bodies[permit]
                self._give_back(permit)
                if not body.limit.expired():
                    body.limit.reschedule(0)  # by the clock of the loop: now
                return True
        return False

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
            self._make_room(resource, 1, "")  # nobody's share is asked for yet

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not any(self.in_flight[each.name] for each in fields(Budgets))
