"""The times at which sessions expire."""

import asyncio
import heapq
import math
import time
from collections.abc import Callable

__all__ = ["ExpirationQueue"]

_RECHECK_SECONDS = 30.0
_TAKEN_ONE_BY_ONE = 500


class ExpirationQueue:
    """A queue of sessions by the time at which they expire.

    By default it goes by the wall clock, but the timers of the event loop go by a monotonic one. A wall clock that is
    set is noticed within half a minute.

    Args:
        expire: Called with the keys of all sessions whose time has passed.
        clock: Returns the time in seconds; the Unix time by default.
    """

    def __init__(self, expire: Callable[[list[str]], None], clock: Callable[[], float] | None = None) -> None:
        self.next = math.inf
        """The time of the earliest expiry; infinite while there is none."""
        self._expire = expire
        self._clock = clock or _wall_clock
        self._times: dict[str, float] = {}
        self._queue: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_target = math.inf

    def put(self, key: str, at: float) -> None:
        """Expire a session at this time instead of the one set before; never if infinite."""
        self.drop(key)
        if at < math.inf:
            self._times[key] = at
            heapq.heappush(self._queue, (at, key))
            self._schedule()

    def drop(self, key: str) -> None:
        """Never expire a session."""
        if self._times.pop(key, None) is None:
            return
        # Its entry in the queue is skipped later, but such entries must not pile up.
        if len(self._queue) > 2 * len(self._times):
            self._queue = [(at, key) for key, at in self._times.items()]
            heapq.heapify(self._queue)
            self._schedule()

    def expire_due(self) -> None:
        """Expire every session whose time has passed."""
        if self.next <= self._clock():
            due = self._take_due()
            if due:
                self._expire(due)

    def _take_due(self) -> list[str]:
        now = self._clock()
        entries: list[tuple[float, str]] = []
        while self._queue and self._queue[0][0] <= now:
            if len(entries) == _TAKEN_ONE_BY_ONE:
                # One look at all entries takes less time than to take many more in their order.
                entries += [entry for entry in self._queue if entry[0] <= now]
                self._queue = [entry for entry in self._queue if entry[0] > now]
                heapq.heapify(self._queue)
                break
            entries.append(heapq.heappop(self._queue))
        due = []
        for at, key in entries:
            if self._times.get(key) == at:
                del self._times[key]
                due.append(key)
        self._schedule()
        return due

    def _schedule(self) -> None:
        """Set the timer to the earliest expiry."""
        self.next = self._queue[0][0] if self._queue else math.inf
        if self._timer is not None and self._timer_target == self.next:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_target = self.next
        if self._queue:
            seconds = min(max(self.next - self._clock(), 0.0), _RECHECK_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(seconds, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.expire_due()
        self._schedule()


def _wall_clock() -> float:
    return time.time()
