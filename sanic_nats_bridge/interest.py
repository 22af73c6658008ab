"""One pattern and who follows it; and what the hub needs of its neighbours."""

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from .errors import BridgeError
from .wire import Delivery, Form, Source

__all__ = ["Interest", "Link", "LinkWatcher", "State", "Subscriber"]


class Link(Protocol):
    """What the hub needs of the connection to NATS."""

    def subscribe(self, pattern: str, sink: "Interest") -> int | None:
        """Send SUB; returns its number, or ``None`` while NATS is away."""

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB."""


class Subscriber(Protocol):
    """What the hub needs of a session."""

    keeps_up: bool
    """The client takes what it is given; otherwise messages are left out."""

    @property
    def form(self) -> Form:
        """Which shape of bytes it takes."""

    def leave_out(self, deliveries: Sequence[Delivery]) -> None:
        """Deal with messages that come while it does not keep up."""

    def write(self, data: bytes) -> None:
        """Hand bytes to the client's socket. Must not raise."""

    def activated(self, pattern: str) -> None:
        """NATS has taken the subscription after the client had been told that it had not yet."""

    def ended(self, pattern: str, error: BridgeError) -> None:
        """The hub has ended the subscription."""


class LinkWatcher(Protocol):
    """Who is told how the connection to NATS fares, at the right place among the messages."""

    def nats_lost(self) -> None:
        """The connection has ended; the interests still show how far they had come."""

    def nats_returned(self) -> None:
        """A new connection stands, and no message of it has been delivered."""

    def nats_connected(self) -> None:
        """NATS has answered for every live pattern."""


class State(Enum):
    """How far an interest is known to the NATS server."""

    AWAY = "away"  # there is no connection
    PENDING = "pending"  # SUB was sent
    LIVE = "live"  # and the server has answered
    REFUSED = "refused"  # the server has refused; no longer in the hub


class Interest:
    """One pattern and who follows it."""

    def __init__(self, pattern: str) -> None:
        # Set once.
        self.pattern = pattern
        self.shuns_reserved = pattern[0] in "*>"
        self.source = Source(pattern)
        # Changed by the hub alone.
        self.batch: list[Delivery] = []
        self.state = State.AWAY
        self.settled = asyncio.Event()
        self.sid: int | None = None
        self.claims = 0
        self.subscribers: dict[Subscriber, None] = {}
        self.linger: asyncio.TimerHandle | None = None

    def take_batch(self) -> list[Delivery]:
        """The messages of this turn; they are here no longer."""
        batch, self.batch = self.batch, []
        return batch
