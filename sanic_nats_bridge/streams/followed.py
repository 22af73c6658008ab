"""One pattern that sessions follow on a stream, with the window of its newest messages."""

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..hub.interest import Interest, State
from .positions import Point
from .window import Window, WindowMemory

__all__ = ["Channel", "Followed", "IdLine", "Position", "Scope"]


class IdLine(Enum):
    """The sequence that the ``id:`` line of a message names on an event stream."""

    NONE = "none"  # the messages have no such line
    OWN = "own"
    BEFORE = "before"  # two patterns of the query overlap, so the message may have a second copy


class Position(Protocol):
    """The position in one stream, as an id has it."""

    @property
    def key(self) -> str:
        """The key of the stream."""
        ...

    @property
    def point(self) -> Point:
        """The present position."""
        ...

    def part(self, point: Point) -> str:
        """Return the part of an id."""


@dataclass(frozen=True, eq=False)
class Scope:
    """The streams that a session follows. Sessions of one scope get messages with the same ids.

    `StreamHub.scope` returns one object for equal values, because it is a key for each message.
    """

    streams: tuple[Position, ...]
    """In the order of their keys."""
    line: IdLine = IdLine.OWN


class Channel(Interest):
    """The subscribers of one pattern whose sessions have one scope."""

    def __init__(self, pattern: str, scope: Scope, followed: "Followed") -> None:
        super().__init__(pattern)
        self.scope = scope
        self.followed = followed
        self.state = State.ACTIVE


class Followed:
    """One pattern on one stream.

    Args:
        pattern: The real pattern.
        memory: The memory that all windows share.
        floor: The sequence after which the pattern is followed.
    """

    def __init__(self, pattern: str, memory: WindowMemory, floor: int) -> None:
        self.pattern = pattern
        self.channels: dict[Scope, Channel] = {}
        """The subscribers that are live, by their scopes."""
        self.sole_channel: Channel | None = None
        """The channel, if there is only one."""
        self.claims = 0
        self.is_ended = False
        """True once no stream has the pattern any more."""
        self.reading = asyncio.Lock()
        """Held while a client's absence is read from NATS, which others then find in the window."""
        self._memory = memory
        self.window = Window(memory, floor)

    def channel(self, scope: Scope) -> Channel:
        """Return the channel of a scope, which is made if it doesn't exist yet."""
        channel = self.channels.get(scope)
        if channel is None:
            channel = self.channels[scope] = Channel(self.pattern, scope, self)
            self._note_channels()
        return channel

    def drop_if_empty(self, channel: Channel) -> None:
        """Remove a channel that has no subscribers."""
        if not channel.views and self.channels.get(channel.scope) is channel:
            del self.channels[channel.scope]
            self._note_channels()

    def _note_channels(self) -> None:
        self.sole_channel = next(iter(self.channels.values())) if len(self.channels) == 1 else None

    def restart_window(self, floor: int) -> None:
        """Forget all messages, and follow the pattern after another sequence."""
        self.window.close()
        self.window = Window(self._memory, floor)
