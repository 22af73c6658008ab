"""The subscriptions of the clients, and the messages that each client must therefore receive."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = [
    "OUT_OF_ORDER",
    "Subscribers",
    "delivery_error",
    "own_subjects",
    "random_subjects",
    "shared_patterns",
    "single_subject",
]

OUT_OF_ORDER = "out of order"
"""The error of a client that received every message, but not in order."""

_SEED = 4222


@dataclass(frozen=True)
class Subscribers:
    """Clients and their subjects. Message number n is published to the n-th subject, cyclically.

    Attributes:
        subjects: The subjects of the published messages.
        subscriptions: The indexes of the subjects of each client.
        stalled: The number of clients, evenly spaced, that stop reading after they have subscribed.
        pattern: The pattern that every client subscribes to, if it isn't its subjects. It must match all of them.
    """

    subjects: tuple[str, ...]
    subscriptions: tuple[tuple[int, ...], ...]
    stalled: int = 0
    pattern: str = ""

    @property
    def size(self) -> int:
        """Number of clients."""
        return len(self.subscriptions)

    @cached_property
    def stalled_clients(self) -> frozenset[int]:
        """Indexes of the clients that never read."""
        return frozenset(index * self.size // self.stalled for index in range(self.stalled))

    def subjects_of(self, client: int) -> list[str]:
        """Return the subjects of a client; a subject without messages if it has none."""
        if self.pattern:
            return [self.pattern]
        return [self.subjects[index] for index in self.subscriptions[client]] or ["bench.silence"]

    def expected(self, client: int, first: int, end: int) -> list[int]:
        """Return the numbers of the messages for a client, from ``first`` up to, but without, ``end``."""
        return sorted(number for index in self.subscriptions[client] for number in self._published(index, first, end))

    def deliveries(self, first: int, end: int) -> int:
        """Return the number of messages for all clients that read, from ``first`` up to, but without, ``end``."""
        published = [len(self._published(index, first, end)) for index in range(len(self.subjects))]
        stalled = self.stalled_clients
        reading = (indexes for client, indexes in enumerate(self.subscriptions) if client not in stalled)
        return sum(published[index] for indexes in reading for index in indexes)

    def _published(self, index: int, first: int, end: int) -> range:
        step = len(self.subjects)
        return range(first + (index - first) % step, end, step)


def single_subject(clients: int, stalled: int = 0, subject: str = "bench.all") -> Subscribers:
    """Return clients that all subscribe to the same subject."""
    return Subscribers((subject,), ((0,),) * clients, stalled)


def own_subjects(clients: int, prefix: str = "bench.own") -> Subscribers:
    """Return clients that each subscribe to a subject of their own."""
    return Subscribers(
        tuple(f"{prefix}.{index}" for index in range(clients)), tuple((index,) for index in range(clients))
    )


def shared_patterns(clients: int, patterns: int, per_pattern: int) -> Subscribers:
    """Return patterns with exactly ``per_pattern`` subscribers each, assigned to the clients in turn."""
    subscriptions: list[list[int]] = [[] for _ in range(clients)]
    for place in range(patterns * per_pattern):
        subscriptions[place % clients].append(place // per_pattern)
    return Subscribers(tuple(f"bench.p.{index}" for index in range(patterns)), tuple(map(tuple, subscriptions)))


def random_subjects(clients: int, subjects: int, per_client: int) -> Subscribers:
    """Return clients that each subscribe to ``per_client`` random subjects, the same in each run."""
    generator = random.Random(_SEED)
    return Subscribers(
        tuple(f"bench.o.{index}" for index in range(subjects)),
        tuple(tuple(generator.sample(range(subjects), per_client)) for _ in range(clients)),
    )


def delivery_error(expected: Sequence[int], received: Sequence[int]) -> str | None:
    """Compare the numbers of a client's messages with the expected ones, and describe the difference, if any."""
    if list(expected) == list(received):
        return None
    missing = len(set(expected) - set(received))
    surplus = len(received) - len(set(received) & set(expected))
    return f"{missing} missing, {surplus} too many" if missing or surplus else OUT_OF_ORDER
