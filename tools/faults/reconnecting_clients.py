"""Browsers: whatever ends a session, they come back by themselves, as the protocol says, for a new one."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .clients import Client, EventClient

__all__ = ["Return", "Visitor"]

_SHORTEST_SECONDS: Final = 0.5


@dataclass(frozen=True)
class Return:
    """A session that ended, and the next.

    Attributes:
        left: When the session ended.
        told: After how many seconds its ``close`` asked the client to come back; ``None`` where it had no ``close``.
        back: When the next session was there, with its subscriptions.
    """

    left: float
    told: float | None
    back: float


class Visitor:
    """One browser.

    Attributes:
        clients: Its sessions; the last is that of now.
        returns: What was between them.
    """

    def __init__(
        self, make: Callable[[int], Client], addresses: Sequence[str], *, longest: float, first_within: float = 0.0
    ) -> None:
        """``longest``: it waits for at most so many seconds, where nothing tells it for how long."""
        self.clients: list[Client] = []
        self.returns: list[Return] = []
        self._make = make
        self._addresses = addresses
        self._longest = longest
        self._first_within = first_within
        self._joined = False
        self._told: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Come, and come again."""
        self._task = asyncio.create_task(self._visit())

    @property
    def client(self) -> Client:
        """The newest session."""
        return self.clients[-1]

    @property
    def present(self) -> bool:
        """It has a session, and its subscriptions are there."""
        return self._joined and self.client.connected

    async def leave(self) -> None:
        """Go, and stay away."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.clients:
            await self.client.leave()

    async def _visit(self) -> None:
        await asyncio.sleep(random.uniform(0, self._first_within))
        left: float | None = None
        close: float | None = None
        while True:
            client = self._make(len(self.clients))
            self.clients.append(client)
            # A session that ends before its first reply is one that has ended.
            with contextlib.suppress(OSError):
                await client.join(random.choice(self._addresses))
                self._joined = True
                if left is not None:
                    self.returns.append(Return(left, close, time.monotonic()))
                left = None
                await client.ended()
            self._joined = False
            await client.leave()
            if left is None:
                left, close = time.monotonic(), client.closing_retry
            await asyncio.sleep(self._wait(client))

    def _wait(self, client: Client) -> float:
        if isinstance(client, EventClient):
            # An EventSource keeps what it was last told.
            self._told = client.retry or self._told
        else:
            self._told = client.retry
        return random.uniform(_SHORTEST_SECONDS, self._longest) if self._told is None else self._told
