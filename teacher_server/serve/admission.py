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

    def reserve(self, what: str, amount: int) -> None:
        """More of a budget.

        Raises:
            Refused: 429, it would be over.
        """
        self.admission.take(what, amount, self.client)
        self.held[what] += amount


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
            for what, amount in permit.held.items():
                self.in_flight[what] -= amount
                self._of_client[client, what] -= amount
                if not self._of_client[client, what]:
                    del self._of_client[client, what]

    def take(self, what: str, amount: int, client: str) -> None:
        """Used by `Permit.reserve`."""
        budget = getattr(self.budgets, what)
        free = budget - self.in_flight[what]
        own = self._of_client[client, what]
        over_share = self.fair and own and own + amount > SHARE_OF_FREE * free
        if amount > free or over_share:
            if over_share and amount <= free:
                raise self._full(what, amount, own, "of this key ")
            raise self._full(what, amount, self.in_flight[what], "")
        self.in_flight[what] += amount
        self._of_client[client, what] += amount

    def _full(self, what: str, amount: int, held: int, whose: str) -> Refused:
        seconds = self.retry_after_s()
        return Refused(
            429,
            f"{held} {what} {whose}in flight, no room for {amount} more of "
            f"{getattr(self.budgets, what)}; try again in {seconds} s",
            what,
            retry_after_s=seconds,
        )

    def require_room(self) -> None:
        """Raises Refused with 429 where not even one image has room: before anything else."""
        for what in ("images", "requests"):
            if self.in_flight[what] >= getattr(self.budgets, what):
                raise self._full(what, 1, self.in_flight[what], "")

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        return not any(self.in_flight[each.name] for each in fields(Budgets))
