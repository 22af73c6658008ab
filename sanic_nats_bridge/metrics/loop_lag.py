"""The delay of the event loop."""

import asyncio

__all__ = ["LoopLag"]

_TICK_SECONDS = 0.1
_SPAN_SECONDS = 15.0


class LoopLag:
    """The largest delay of a timer within the last 15 to 30 seconds, the current one included.

    A delay is measured too short by one tick, 0.1 s, at most.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._span_ends = 0.0
        self._largest = self._largest_before = 0.0

    @property
    def seconds(self) -> float:
        """The delay in seconds; 0 while the loop isn't watched."""
        if self._timer is None:
            return 0.0
        overdue = asyncio.get_running_loop().time() - self._due
        return max(overdue, self._largest, self._largest_before)

    def start(self) -> None:
        """Begin to watch the running loop."""
        now = asyncio.get_running_loop().time()
        self._largest = self._largest_before = 0.0
        self._span_ends = now + _SPAN_SECONDS
        self._schedule_tick(now)

    def stop(self) -> None:
        """Stop watching the loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule_tick(self, now: float) -> None:
        self._due = now + _TICK_SECONDS
        self._timer = asyncio.get_running_loop().call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._span_ends:
            self._span_ends = now + _SPAN_SECONDS
            self._largest_before, self._largest = self._largest, 0.0
        self._largest = max(self._largest, now - self._due)
        self._schedule_tick(now)
