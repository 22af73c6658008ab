"""Who follows what, and what each must therefore get."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

__all__ = ["Audience", "drawn_subjects", "faults", "own_subjects", "shared_patterns", "single_subject"]

_SEED: Final = 4222


@dataclass(frozen=True)
class Audience:
    """Clients and their subjects; message number n is published to the n-th of the subjects, round and round.

    Attributes:
        subjects: What is published to.
        follows: For each client, the indexes of its subjects.
        stalled: So many of the clients, evenly spread, never read once they have subscribed.
    """

    subjects: tuple[str, ...]
    follows: tuple[tuple[int, ...], ...]
    stalled: int = 0

    @property
    def size(self) -> int:
        """How many clients there are."""
        return len(self.follows)

    @cached_property
    def idle(self) -> frozenset[int]:
        """The clients that never read."""
        return frozenset(index * self.size // self.stalled for index in range(self.stalled))

    def names(self, client: int) -> list[str]:
        """The subjects of a client; one that nobody publishes to where it has none."""
        return [self.subjects[index] for index in self.follows[client]] or ["bench.silence"]

    def expected(self, client: int, first: int, end: int) -> list[int]:
        """The numbers of the messages that a client gets of those from ``first`` up to ``end``."""
        return sorted(number for index in self.follows[client] for number in self._published(index, first, end))

    def deliveries(self, first: int, end: int) -> int:
        """How many messages the clients that read get altogether."""
        published = [len(self._published(index, first, end)) for index in range(len(self.subjects))]
        idle = self.idle
        reading = (indexes for client, indexes in enumerate(self.follows) if client not in idle)
        return sum(published[index] for indexes in reading for index in indexes)

    def _published(self, index: int, first: int, end: int) -> range:
        step = len(self.subjects)
        return range(first + (index - first) % step, end, step)


def single_subject(clients: int, stalled: int = 0) -> Audience:
    """All follow one subject."""
    return Audience(("bench.all",), ((0,),) * clients, stalled)


def own_subjects(clients: int) -> Audience:
    """Each follows a subject of its own."""
    return Audience(
        tuple(f"bench.own.{index}" for index in range(clients)), tuple((index,) for index in range(clients))
    )


def shared_patterns(clients: int, patterns: int, followers: int) -> Audience:
    """Each of the subjects has exactly so many followers, taken from the clients in turn."""
    follows: list[list[int]] = [[] for _ in range(clients)]
    for place in range(patterns * followers):
        follows[place % clients].append(place // followers)
    return Audience(tuple(f"bench.p.{index}" for index in range(patterns)), tuple(map(tuple, follows)))


def drawn_subjects(clients: int, subjects: int, followed: int) -> Audience:
    """Each follows so many of the subjects, drawn by lot, the same ones in each run."""
    lot = random.Random(_SEED)
    return Audience(
        tuple(f"bench.o.{index}" for index in range(subjects)),
        tuple(tuple(lot.sample(range(subjects), followed)) for _ in range(clients)),
    )


def faults(expected: Sequence[int], received: Sequence[int]) -> str | None:
    """What is wrong with a client's messages; ``None`` where nothing is."""
    if list(expected) == list(received):
        return None
    missing = len(set(expected) - set(received))
    surplus = len(received) - len(set(received) & set(expected))
    return f"{missing} missing, {surplus} too many" if missing or surplus else "out of order"
