"""Whether a NATS server still lives: a round trip of our own, with a deadline.

A server that hangs, or a network that swallows everything, ends no connection: only what fails to
come tells. nats-py's own pinger takes three intervals for it, counts an event loop that was blocked
as time in which the server was silent, and stops while the app drains its client.
"""

import asyncio
from typing import Final, Protocol

__all__ = ["PingableConnection", "wait_until_stale"]

_STEPS: Final = 4
_MAX_UNANSWERED_PINGS: Final = 15


class PingableConnection(Protocol):
    """A connection as it is watched here."""

    @property
    def reads(self) -> int:
        """How often anything was read from the server."""

    @property
    def unanswered_pings(self) -> int:
        """How many of our PINGs still wait for their PONG."""

    def ping(self) -> None:
        """Send a PING."""


async def wait_until_stale(connection: PingableConnection, interval: float) -> str:
    """Ping every ``interval`` seconds, and return when the server has to be given up: why, in words.

    A server is silent when nothing at all was read in the interval after a PING, so one that stops
    is noticed within two intervals. Whatever was read counts, not the PONG alone: the PONG stands
    behind all that the server had to say before it, which under a flood takes longer, and nothing
    is read without a server that writes and a read loop that runs. What a server sent before it
    stopped, and was read after the PING, counts once. That the PONG never comes although much does
    is the sign of a stream that has lost its sense, as with a length that was corrupted on the way.
    """
    while True:
        reads = connection.reads
        connection.ping()
        # In steps, for a loop that was blocked, or a machine that slept, wakes with what has come
        # meanwhile still unread: that counts as one step, and leaves the others to read it.
        for _ in range(_STEPS):
            await asyncio.sleep(interval / _STEPS)
        if connection.reads == reads:
            return f"the server was silent for {interval:g} s after a PING"
        if connection.unanswered_pings >= _MAX_UNANSWERED_PINGS:
            return f"the server left {_MAX_UNANSWERED_PINGS} PINGs unanswered"
