"""Work on many sessions that is spread over turns of the event loop."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

__all__ = ["Spread"]

T = TypeVar("T")


class Spread(Generic[T]):
    """Work on each of some items: on the first ones at once, and on as many in each later turn of the event loop.

    Args:
        items: The items.
        work: Called with each item. An exception doesn't keep it from the others.
        per_turn: The number of items per turn.
    """

    def __init__(self, items: Iterable[T], work: Callable[[T], None], per_turn: int) -> None:
        self._items = deque(items)
        self._work = work
        self._per_turn = per_turn
        self._finished = asyncio.Event()
        self._continue()

    def cancel(self) -> None:
        """Drop the rest of the work."""
        self._items.clear()
        self._finished.set()

    async def finish(self) -> None:
        """Wait until the work is done or cancelled."""
        await self._finished.wait()

    def _continue(self) -> None:
        try:
            for _ in range(min(len(self._items), self._per_turn)):
                self._work(self._items.popleft())
        finally:
            if self._items:
                asyncio.get_running_loop().call_soon(self._continue)
            else:
                self._finished.set()
