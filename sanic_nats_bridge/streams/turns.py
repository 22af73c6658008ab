"""The turns of replays to read a stream."""

import asyncio
from typing import Literal

from ..metrics.counters import Counters

__all__ = ["Turns"]


class Turns(asyncio.Semaphore):
    """The number of replays that may read one stream at once. The others wait in the order of their arrival.

    Args:
        limit: The number.
        counters: Count the replays that wait.
    """

    def __init__(self, limit: int, counters: Counters) -> None:
        super().__init__(limit)
        self._counters = counters

    async def acquire(self) -> Literal[True]:
        """Wait for a turn. `release` ends it."""
        self._counters.replays_waiting += 1
        try:
            return await super().acquire()
        finally:
            self._counters.replays_waiting -= 1
