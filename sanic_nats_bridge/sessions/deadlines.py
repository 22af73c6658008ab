"""How long the worker waits for clients, and for the app, until it has heard what it must."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Deadlines"]


class Deadlines:
    """Deadlines that are over at once when the worker stops: a client that has begun a request holds nothing up."""

    def __init__(self) -> None:
        self._deadlines: set[asyncio.Timeout] = set()
        self.over = False
        """The worker stops."""

    @contextlib.asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """Let this take so long.

        Raises:
            TimeoutError: It has taken longer, or the worker stops.
        """
        async with asyncio.timeout(0 if self.over else seconds) as deadline:
            self._deadlines.add(deadline)
            try:
                yield
            finally:
                self._deadlines.discard(deadline)

    def begin(self) -> None:
        """Wait, from here on."""
        self.over = False

    def end(self) -> None:
        """Wait no more."""
        self.over = True
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(0)
