"""Logs of clients of streams, and the messages that the streams have held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .profiles import Profile

__all__ = ["Asked", "Barrier", "Cut", "Denied", "Ended", "Entry", "Log", "Received", "Stored", "Truth"]


class Stored(NamedTuple):
    """A message in a stream. Its payload has a number that no other message has."""

    seq: int
    subject: str
    number: int


@dataclass
class Truth:
    """The messages that the streams have held.

    Attributes:
        stored: The messages of each stream, in order. Sequences rise over all its lives.
        lives: For each stream whose content began again: the time in milliseconds at which each life began, and what
            is added to the sequences of that life.
        unsure: The numbers of messages that a stream may have held for a moment, before it was lost.
    """

    stored: Mapping[str, Sequence[Stored]]
    lives: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    unsure: frozenset[int] = frozenset()


class Asked(NamedTuple):
    """A subscribe of a client that was sent, as a command or in the query of an event stream."""

    patterns: Sequence[str]
    start: Any
    after: str | None


class Received(NamedTuple):
    """A frame. ``pattern``, ``subject`` and ``number`` are those of a message."""

    kind: str
    pattern: str
    subject: str
    number: int
    id: str
    frame: Mapping[str, Any]


class Ended(NamedTuple):
    """The client has unsubscribed, and has got the reply."""

    patterns: Sequence[str]


class Cut(NamedTuple):
    """The connection was cut."""


class Denied(NamedTuple):
    """The app has begun to change what it hides from the client."""


class Barrier(NamedTuple):
    """A point from which on the client must not receive what these patterns hide."""

    deny: Sequence[str]


Entry = Asked | Received | Ended | Cut | Denied | Barrier


@dataclass
class Log:
    """The log of one client over all its sessions.

    Attributes:
        complete: The client was connected until it had received everything, or had enough time for it.
        repeats: It is an event stream with overlapping patterns, so a message may come again after a reconnect.
    """

    name: str
    profile: Profile
    entries: list[Entry] = field(default_factory=list)
    complete: bool = True
    repeats: bool = False
