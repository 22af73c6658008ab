"""Detection of a NATS server that has stopped responding, by PINGs with a deadline.

A server that hangs, or a network that drops every packet, doesn't end a connection. Only missing data reveals it.
nats-py's own pinger needs three intervals for that. It also counts time in which the event loop was blocked as silence
of the server, and it stops while the app drains its client.
"""

import asyncio
from typing import Protocol

__all__ = ["PingableConnection", "wait_until_stale"]

_STEPS = 4
_MAX_UNANSWERED_PINGS = 15


class PingableConnection(Protocol):
    """A connection whose server is checked."""

    @property
    def reads(self) -> int:
        """Number of reads that have returned data."""

    @property
    def unanswered_pings(self) -> int:
        """Number of PINGs whose PONG has not arrived."""

    @property
    def is_full(self) -> bool:
        """True while the bridge reads nothing."""

    def ping(self) -> None:
        """Send a PING."""


async def wait_until_stale(connection: PingableConnection, interval: float) -> str:
    """Send a PING every ``interval`` seconds; return when the server counts as dead.

    A server is silent if nothing was read in the interval after a PING. A stopped server is noticed within two
    intervals, because data that it sent before can be read after one PING at most.

    Any data counts, not only the PONG. The PONG comes after everything that the server had to send before it, which may
    take longer than an interval. If data keeps coming but many PONGs are missing, the stream is corrupt, for instance
    by a changed length in a message line.

    Returns:
        The reason, for the log.
    """
    while True:
        reads = connection.reads
        connection.ping()
        may_read = True
        # In steps, because a loop that was blocked, or a machine that was suspended, wakes with unread data. The lost
        # time counts as one step. The other steps leave time to read.
        for _ in range(_STEPS):
            await asyncio.sleep(interval / _STEPS)
            may_read = may_read and not connection.is_full
        if connection.reads == reads and may_read:
            return f"the server was silent for {interval:g} s after a PING"
        if connection.unanswered_pings >= _MAX_UNANSWERED_PINGS:
            return f"the server left {_MAX_UNANSWERED_PINGS} PINGs unanswered"
