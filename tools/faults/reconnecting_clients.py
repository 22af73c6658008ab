"""Clients that reconnect with a new session when one ends, after the delay that the protocol defines."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .clients import Client, EventClient

__all__ = ["Reconnect", "ReconnectingClient"]

_MIN_DELAY_SECONDS = 0.5


@dataclass(frozen=True)
class Reconnect:
    """The end of a session, and the start of the next one.

    Attributes:
        ended: The time at which the session ended.
        retry: The seconds after which the ``close`` of the session asked the client to reconnect, or None without
            a ``close``.
        reconnected: The time at which the next session had its subscriptions.
    """

    ended: float
    retry: float | None
    reconnected: float


class ReconnectingClient:
    """A client and its sessions.

    Args:
        factory: Creates the session of a number.
        addresses: The hosts and ports to which it connects, at random.
        max_delay: The longest delay in seconds before it reconnects, if it has received no ``retry``.
        initial_spread: The longest delay in seconds before it connects first.

    Attributes:
        sessions: All sessions, of which the last is the current one.
        reconnects: The reconnects between the sessions.
    """

    def __init__(
        self,
        factory: Callable[[int], Client],
        addresses: Sequence[str],
        *,
        max_delay: float,
        initial_spread: float = 0.0,
    ) -> None:
        self.sessions: list[Client] = []
        self.reconnects: list[Reconnect] = []
        self._factory = factory
        self._addresses = addresses
        self._max_delay = max_delay
        self._initial_spread = initial_spread
        self._subscribed = False
        self._retry: float | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect, and reconnect whenever a session ends."""
        self._task = asyncio.create_task(self._run())

    @property
    def current(self) -> Client:
        """Newest session."""
        return self.sessions[-1]

    @property
    def connected(self) -> bool:
        """True if it has a session with its subscriptions."""
        return self._subscribed and self.current.connected

    async def close(self) -> None:
        """Disconnect, and don't reconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.sessions:
            await self.current.close()

    async def _run(self) -> None:
        await asyncio.sleep(random.uniform(0, self._initial_spread))
        ended: float | None = None
        retry: float | None = None
        while True:
            session = self._factory(len(self.sessions))
            self.sessions.append(session)
            # A session that ends before its first reply counts as one that has ended.
            with contextlib.suppress(OSError):
                await session.connect(random.choice(self._addresses))
                self._subscribed = True
                if ended is not None:
                    self.reconnects.append(Reconnect(ended, retry, time.monotonic()))
                ended = None
                await session.wait_ended()
            self._subscribed = False
            await session.close()
            if ended is None:
                ended, retry = time.monotonic(), session.closing_retry
            await asyncio.sleep(self._delay(session))

    def _delay(self, session: Client) -> float:
        if isinstance(session, EventClient):
            # An EventSource keeps the last reconnection time that it has received (WHATWG HTML, section 9.2).
            self._retry = session.retry or self._retry
        else:
            self._retry = session.retry
        return random.uniform(_MIN_DELAY_SECONDS, self._max_delay) if self._retry is None else self._retry
