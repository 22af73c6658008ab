"""What a client is not given while it is over its limit, and what it is told of it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ..metrics.counters import Counters
from ..protocol import encoding
from ..protocol.encoding import EncodedMessage, WireFormat
from ..protocol.messages import Gap

__all__ = ["SlowConsumer"]

_ENTRY_BYTES: Final = 128  # what it costs to keep a message, beside the message


class SlowConsumer:
    """The messages left out since a client went over its limit.

    With ``kept_bytes`` the newest of each subscription and subject are kept, to be delivered later, for
    as long as all of them together are no larger; the oldest give way. The others are counted.
    """

    def __init__(self, wire_format: WireFormat, kept_bytes: int, counters: Counters) -> None:
        self.over: Final = asyncio.Event()
        self._counters = counters
        counters.slow_consumers += 1
        self._form = wire_format
        self._kept_bytes = kept_bytes
        self._room = kept_bytes
        # Bytes, not deliveries: those hold what they were made of too.
        self._kept: dict[tuple[str, str], bytes] = {}
        self._lost: dict[str, int] = {}

    def add(self, messages: Sequence[EncodedMessage]) -> None:
        """Leave these messages out."""
        if not self._kept_bytes:
            self._counters.lost["slow_consumer"] += len(messages)
        for message in messages:
            pattern = message.prefix.pattern
            if self._kept_bytes:
                self._keep((pattern, message.subject), message.encoded(self._form))
            else:
                self._lost[pattern] = self._lost.get(pattern, 0) + 1

    def take(self, pattern: str) -> Gap | None:
        """What the client is told of a subscription that has ended, if it has missed any of it."""
        for key in [key for key in self._kept if key[0] == pattern]:
            self._lose(key)
        lost = self._lost.pop(pattern, 0)
        return self._gap(pattern, lost) if lost else None

    def drop(self, unwanted: Callable[[str, str], bool]) -> None:
        """Keep nothing of what is not for the client any more, by pattern and subject."""
        for key in [key for key in self._kept if unwanted(*key)]:
            self._lose(key)

    @property
    def lost(self) -> Iterable[tuple[str, int]]:
        """How many messages of which pattern the client will never get."""
        return self._lost.items()

    @property
    def kept(self) -> Iterable[bytes]:
        """The messages that it gets after all, in the order of their arrival."""
        return self._kept.values()

    def told(self) -> bytes:
        """What the client is given once it has caught up: a gap for each pattern, and what was kept."""
        self._counters.deliveries += len(self._kept)
        gaps = [encoding.encode_frame(self._gap(pattern, lost), self._form) for pattern, lost in self.lost]
        return b"".join([*gaps, *self.kept])

    def _gap(self, pattern: str, lost: int) -> Gap:
        self._counters.gaps["slow_consumer"] += 1
        return Gap(subjects=[pattern], lost=lost, reason="slow_consumer")

    def _keep(self, key: tuple[str, str], message: bytes) -> None:
        if key in self._kept:
            self._lose(key)
        self._kept[key] = message
        self._room -= _cost(message)
        # One that has no room at all takes the place of no other.
        while self._room < 0:
            self._lose(key if _cost(message) > self._kept_bytes else next(iter(self._kept)))

    def _lose(self, key: tuple[str, str]) -> None:
        self._room += _cost(self._kept.pop(key))
        self._counters.lost["slow_consumer"] += 1
        self._lost[key[0]] = self._lost.get(key[0], 0) + 1


def _cost(message: bytes) -> int:
    return len(message) + _ENTRY_BYTES
