"""The messages that a slow consumer skips, and the gaps that it receives instead."""

import asyncio
from collections.abc import Callable, Iterable

from ..hub.skipped import SkippedMessages
from ..metrics.counters import Counters
from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Gap

__all__ = ["SlowConsumer"]

_OVERHEAD_BYTES = 128  # memory per kept message beside its own bytes


class SlowConsumer:
    """The messages skipped since a client's buffer exceeded its limit.

    The newest message of each subscription and subject is kept, and delivered once the client has caught up.
    All kept messages together take at most ``kept_bytes``; the oldest are dropped first. Dropped messages are
    counted as lost.
    """

    def __init__(self, wire_format: WireFormat, kept_bytes: int, counters: Counters) -> None:
        self.ended = asyncio.Event()
        """Set when the client has caught up, or when its session has ended."""
        self._counters = counters
        counters.slow_consumers += 1
        self._wire_format = wire_format
        self._kept_bytes = kept_bytes
        self._free_bytes = kept_bytes
        # The encoded bytes only: an EncodedMessage would also keep its payload alive.
        self._kept: dict[tuple[str, str], bytes] = {}
        self._lost: dict[str, int] = {}

    def add(self, skipped: SkippedMessages) -> None:
        """Skip messages: keep the newest ones, or only count them if ``kept_bytes`` is 0."""
        if not self._kept_bytes:
            self._counters.lost["slow_consumer"] += len(skipped.messages)
            for pattern, count in skipped.by_pattern.items():
                self._lost[pattern] = self._lost.get(pattern, 0) + count
            return
        for message, older in skipped.newest:
            pattern = message.prefix.pattern
            if older:
                self._counters.lost["slow_consumer"] += older
                self._lost[pattern] = self._lost.get(pattern, 0) + older
            self._keep((pattern, message.subject), message.encoded(self._wire_format))

    def remove(self, pattern: str) -> Gap | None:
        """Remove a subscription that has ended; return its gap if it has lost messages."""
        for key in [key for key in self._kept if key[0] == pattern]:
            self._drop(key)
        lost = self._lost.pop(pattern, 0)
        return self._gap(pattern, lost) if lost else None

    def drop_excluded(self, excludes: Callable[[str, str], bool]) -> None:
        """Drop the kept messages that the client must no longer receive.

        Args:
            excludes: Returns whether a message is excluded, by its pattern and subject.
        """
        for key in [key for key in self._kept if excludes(*key)]:
            self._drop(key)

    @property
    def lost(self) -> Iterable[tuple[str, int]]:
        """The patterns with lost messages, and the number of these."""
        return self._lost.items()

    @property
    def kept(self) -> Iterable[bytes]:
        """The kept messages, in the order of their arrival."""
        return self._kept.values()

    def encode_backlog(self) -> bytes:
        """Encode the frames for a client that has caught up: a gap for each pattern, then the kept messages."""
        self._counters.deliveries += len(self._kept)
        gaps = [encoding.encode_frame(self._gap(pattern, lost), self._wire_format) for pattern, lost in self.lost]
        return b"".join([*gaps, *self.kept])

    def _gap(self, pattern: str, lost: int) -> Gap:
        self._counters.gaps["slow_consumer"] += 1
        return Gap(subjects=[pattern], lost=lost, reason="slow_consumer")

    def _keep(self, key: tuple[str, str], message: bytes) -> None:
        if key in self._kept:
            self._drop(key)
        self._kept[key] = message
        self._free_bytes -= _memory_bytes(message)
        # A message that exceeds the limit by itself doesn't displace others.
        while self._free_bytes < 0:
            self._drop(key if _memory_bytes(message) > self._kept_bytes else next(iter(self._kept)))

    def _drop(self, key: tuple[str, str]) -> None:
        self._free_bytes += _memory_bytes(self._kept.pop(key))
        self._counters.lost["slow_consumer"] += 1
        self._lost[key[0]] = self._lost.get(key[0], 0) + 1


def _memory_bytes(message: bytes) -> int:
    return len(message) + _OVERHEAD_BYTES
