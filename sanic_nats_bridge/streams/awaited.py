"""The sequences of a stream that replays wait for."""

import asyncio
import contextlib
import heapq
import itertools
import math
from collections.abc import Iterator

__all__ = ["AwaitedSequences"]


class AwaitedSequences:
    """The sequences that the feed of a stream hasn't reached, and the replays that wait for each of them.

    A message wakes only those that wait for its sequence or an earlier one, because clients may name any sequence.
    """

    def __init__(self) -> None:
        self.next: float = math.inf
        """The lowest sequence; infinite if there is none."""
        self._queue: list[tuple[int, int, asyncio.Event]] = []
        self._waiting: set[asyncio.Event] = set()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextlib.contextmanager
    def waiting(self, seq: int) -> Iterator[asyncio.Event]:
        """Yield an event that is set when the feed arrives at a sequence, until the end of the block."""
        event = asyncio.Event()
        self._waiting.add(event)
        heapq.heappush(self._queue, (seq, next(self._numbers), event))
        self._note_next()
        try:
            yield event
        finally:
            self._waiting.discard(event)
            # Its entry in the queue is skipped later, but such entries must not pile up.
            if len(self._queue) > 2 * len(self._waiting):
                self._queue = [each for each in self._queue if each[2] in self._waiting]
                heapq.heapify(self._queue)
                self._note_next()

    def arrived(self, seq: int) -> None:
        """Wake all that wait for this sequence or an earlier one."""
        while self._queue and self._queue[0][0] <= seq:
            heapq.heappop(self._queue)[2].set()
        self._note_next()

    def _note_next(self) -> None:
        self.next = self._queue[0][0] if self._queue else math.inf
