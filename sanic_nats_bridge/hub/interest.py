"""One pattern and who follows it, in which view; and what the hub needs of its neighbours."""

import asyncio
from collections.abc import Sequence
from enum import Enum
from typing import Final, Protocol

from ..auth.permissions import Grant
from ..errors import BridgeError
from ..protocol import subjects
from ..protocol.encoding import Delivery, Form, Source

__all__ = ["Interest", "Link", "LinkWatcher", "State", "Subscriber", "View"]


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

    def missed(self, pattern: str) -> None:
        """Messages of the subscription were, or may have been, lost here by a fault of the bridge."""

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
        """NATS has answered for every pattern that was followed when the new connection came."""


class State(Enum):
    """How far an interest is known to the NATS server."""

    AWAY = "away"  # there is no connection
    PENDING = "pending"  # SUB was sent, or waits for its turn
    LIVE = "live"  # and the server has answered
    REFUSED = "refused"  # the server has refused; no longer in the hub


class View:
    """How one interest looks to those who see the same of it: under which name, and without which subjects."""

    def __init__(self, interest: "Interest", grant: Grant, source: Source) -> None:
        # Set once.
        self.interest: Final = interest
        self.grant: Final = grant
        self.pattern: Final = grant.pattern
        self.source: Final = source
        self.leaves_out: Final = subjects.matcher(grant.left_out) if grant.left_out else None
        # Changed by the hub alone.
        self.batch: list[Delivery] = []
        self.subscribers: dict[Subscriber, None] = {}

    def take_batch(self) -> list[Delivery]:
        """The messages of this turn; they are here no longer."""
        batch, self.batch = self.batch, []
        return batch


class Interest:
    """One pattern that NATS is asked for."""

    def __init__(self, pattern: str) -> None:
        # Set once.
        self.pattern: Final = pattern
        self.has_wildcard: Final = subjects.has_wildcard(pattern)
        self.shuns_reserved: Final = pattern[0] in "*>"
        # Changed by the hub alone.
        self.state = State.AWAY
        self.settled = asyncio.Event()
        self.sid: int | None = None
        self.queued = False
        self.claims = 0
        self.linger: asyncio.TimerHandle | None = None
        self.views: dict[str, dict[Grant, View]] = {}
        """Those that have subscribers, by the client's name for the pattern: with one name, all look the same but
        for what is left out."""
        self.only_view: View | None = None
        """The one that all followers have, where nothing is left out for them."""

    def followers(self) -> list[tuple[View, Subscriber]]:
        """Who follows it, and in which view."""
        views = [view for alike in self.views.values() for view in alike.values()]
        return [(view, subscriber) for view in views for subscriber in view.subscribers]

    def add(self, subscriber: Subscriber, grant: Grant) -> View:
        """Have it followed as the grant says."""
        alike = self.views.setdefault(grant.pattern, {})
        view = alike.get(grant)
        if view is None:
            source = next((view.source for view in alike.values()), None)
            view = alike[grant] = View(self, grant, source or Source(grant.pattern, grant.shown, grant.hidden))
            self._note_only_view()
        view.subscribers[subscriber] = None
        return view

    def remove(self, subscriber: Subscriber, view: View) -> None:
        """Have it followed no longer in this view."""
        del view.subscribers[subscriber]
        if not view.subscribers:
            alike = self.views[view.pattern]
            del alike[view.grant]
            if not alike:
                del self.views[view.pattern]
            self._note_only_view()

    def _note_only_view(self) -> None:
        views = [view for alike in self.views.values() for view in alike.values()]
        self.only_view = views[0] if len(views) == 1 and views[0].leaves_out is None else None
