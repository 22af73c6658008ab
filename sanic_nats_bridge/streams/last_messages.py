"""The search for the sequence at which the last messages of a pattern begin.

JetStream has no request for it. But a Direct Get returns the number of messages of a pattern from a sequence on, and
between two sequences that number usually changes at a more or less even rate.
"""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Messages", "find_first_of_last"]

_MAX_WIDENINGS = 7
_MAX_NARROWINGS = 9
_FIRST_WIDTH = 16
_GROWTH = 16


class Messages(Protocol):
    """The messages of one pattern in a stream."""

    first_seq: int
    last_seq: int
    max_read: int
    """The number of messages up to which reading them is cheaper than more steps."""

    async def last(self) -> int | None:
        """Return the sequence of the last message; ``None`` if there is none."""

    async def first_from(self, seq: int) -> int | None:
        """Return the sequence of the first message from this one on; ``None`` if there is none."""

    async def count_from(self, seq: int) -> tuple[int, int]:
        """Return the sequence of the first message from this one on, and the number of messages from there on."""

    async def read(self, seq: int, count: int) -> list[int]:
        """Return the sequences of the first messages from this one on, at most ``count`` of them."""


@dataclass(slots=True)
class _Bracket:
    """Two sequences between which the searched one is: above ``low``, at most ``high``.

    ``low`` is that of a message from which on more than enough messages follow. From ``high`` on fewer follow.
    """

    low: int
    low_count: int
    high: int
    high_count: int

    @property
    def is_open(self) -> bool:
        return self.low + 1 < self.high

    @property
    def middle(self) -> int:
        return self.low + (self.high - self.low) // 2

    def interpolated(self, count: int) -> int:
        """Return the sequence from which on this many messages follow if they are spread evenly."""
        share = (self.low_count - count) / max(1, self.low_count - self.high_count)
        return min(max(self.low + int((self.high - self.low) * share), self.low + 1), self.high - 1)


async def find_first_of_last(messages: Messages, count: int) -> tuple[int, bool]:
    """Return the sequence at which the last ``count`` messages begin, and whether there are older ones.

    The search takes 18 requests at most, usually 4. It is exact unless they don't suffice because the messages are
    spread very unevenly. Then at least one message and fewer than ``count`` follow the sequence.
    """
    last = await messages.last()
    if last is None:
        return messages.last_seq + 1, False
    if count <= 1:
        return last, await _is_older(messages, last)
    bracket = _Bracket(0, 0, last, 1)
    start = await _widen(messages, count, bracket)
    if start is not None:
        return start, start > messages.first_seq and await _is_older(messages, start)
    return await _narrow(messages, count, bracket), True


async def _widen(messages: Messages, count: int, bracket: _Bracket) -> int | None:
    """Move the bracket down until it is valid. Return the result if that is found, or if there are too few messages."""
    last, width = bracket.high, max(_FIRST_WIDTH, 2 * count)
    for step in range(_MAX_WIDENINGS):
        start = messages.first_seq if step == _MAX_WIDENINGS - 1 else max(messages.first_seq, last + 1 - width)
        bracket.low, bracket.low_count = await messages.count_from(start)
        if bracket.low_count > count:
            return None
        if bracket.low_count == count or start == messages.first_seq:
            return start
        bracket.high, bracket.high_count = start, bracket.low_count
        width = int(width * min(_GROWTH, max(2.0, 1.5 * count / max(1, bracket.low_count))))
    return messages.first_seq


async def _narrow(messages: Messages, count: int, bracket: _Bracket) -> int:
    """Return the result, or the upper end of the bracket after many steps."""
    halve, readable = False, messages.max_read
    for _ in range(_MAX_NARROWINGS):
        excess = bracket.low_count - count
        if excess == 1:
            return bracket.low + 1
        if not bracket.is_open:
            break
        if excess <= readable:
            found = await messages.read(bracket.low, excess + 1)
            if len(found) > excess:
                return found[excess]
            # The messages are large.
            readable = 0
            if found:
                bracket.low, bracket.low_count = found[-1], bracket.low_count - len(found) + 1
            continue
        distance = bracket.high - bracket.low
        # A little too low, so that the rest can be read.
        start = bracket.middle if halve else bracket.interpolated(count + min(readable, excess) // 2)
        found_seq, found_count = await messages.count_from(start)
        if found_count == count:
            return start
        if found_count > count:
            bracket.low, bracket.low_count = found_seq, found_count
        else:
            bracket.high, bracket.high_count = start, found_count
        # Interpolation alone may approach from one side, by little in each step.
        halve = not halve and bracket.high - bracket.low > distance // 2
    return bracket.high


async def _is_older(messages: Messages, seq: int) -> bool:
    first = await messages.first_from(messages.first_seq)
    return first is not None and first < seq
