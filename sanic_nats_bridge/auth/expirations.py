"""When the permissions of sessions expire."""

import asyncio
import heapq
import math
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Expiries"]

_LOOK_AGAIN_SECONDS: Final = 30.0


class Expiries:
    """Knows whose time is over, by the wall clock, and calls ``on_due`` then; that is to call `take_due`.

    The timers of the event loop go by another clock: where the wall clock is set, it is noticed within half
    a minute.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._at: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_for = math.inf

    @property
    def next(self) -> float:
        """Unix seconds before which none is due; infinite where none ever is."""
        return self._queue[0][0] if self._queue else math.inf

    def put(self, key: str, at: float) -> None:
        """Have it be due at these Unix seconds, not when it was before; never, where infinite."""
        self.drop(key)
        if at < math.inf:
            self._at[key] = at
            heapq.heappush(self._queue, (at, key))
            self._wait()

    def drop(self, key: str) -> None:
        """Have it never be due."""
        if self._at.pop(key, None) is None:
            return
        # What is left of it in the queue is passed over, but must not pile up.
        if len(self._queue) > 2 * len(self._at):
            self._queue = [(at, key) for key, at in self._at.items()]
            heapq.heapify(self._queue)
            self._wait()

    def take_due(self) -> list[str]:
        """Those that are due; they are here no longer."""
        due = []
        while self._queue and self._queue[0][0] <= time.time():
            at, key = heapq.heappop(self._queue)
            if self._at.get(key) == at:
                del self._at[key]
                due.append(key)
        self._wait()
        return due

    def _wait(self) -> None:
        """Have the timer run for what is next."""
        if self._timer is not None and self._timer_for == self.next:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_for = self.next
        if self._queue:
            seconds = min(max(self.next - time.time(), 0.0), _LOOK_AGAIN_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        self._on_due()
