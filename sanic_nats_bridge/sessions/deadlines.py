"""Timeouts for slow clients and slow app functions, which a worker that stops cuts short."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Deadlines"]


class Deadlines:
    """Timeouts that expire at once when the worker stops. An unfinished request doesn't delay the stop."""

    def __init__(self) -> None:
        self._timeouts: set[asyncio.Timeout] = set()
        self.stopping = False
        """Set while the worker stops. Every timeout is zero then."""

    @contextlib.asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[asyncio.Timeout]:
        """Limit the duration of a block, and yield the timeout.

        Raises:
            TimeoutError: The block has taken longer, or the worker stops.
        """
        async with asyncio.timeout(0 if self.stopping else seconds) as timeout:
            self._timeouts.add(timeout)
            try:
                yield timeout
            finally:
                self._timeouts.discard(timeout)

    def start(self) -> None:
        """Give new blocks their full time."""
        self.stopping = False

    def stop(self) -> None:
        """Expire the timeouts of all running blocks, and of all later ones."""
        self.stopping = True
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(0)
