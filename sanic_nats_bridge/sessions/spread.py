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
        self._on_finished: Callable[[], None] | None = None
        self._continue()

    def add(self, items: Iterable[T]) -> None:
        """Work on further items, after those that are left; on the first ones at once if none is left."""
        self._items.extend(items)
        if self._items and self._finished.is_set():
            # A new one, because an event belongs to the event loop in which it was first waited for.
            self._finished = asyncio.Event()
            self._continue()

    def cancel(self) -> None:
        """Drop the rest of the work."""
        self._items.clear()
        self._on_finished = None
        self._finished.set()

    async def finish(self) -> None:
        """Wait until the work is done or cancelled."""
        await self._finished.wait()

    def then(self, callback: Callable[[], None]) -> None:
        """Call a function once the work is done, or now if it is. It isn't called if the work is cancelled."""
        if self._finished.is_set():
            callback()
        else:
            self._on_finished = callback

    def _continue(self) -> None:
        try:
            for _ in range(min(len(self._items), self._per_turn)):
                self._work(self._items.popleft())
        finally:
            if self._items:
                asyncio.get_running_loop().call_soon(self._continue)
            elif not self._finished.is_set():
                self._finished.set()
                callback, self._on_finished = self._on_finished, None
                if callback is not None:
                    callback()
