"""One pattern that NATS is asked for, and the views in which subscribers see its messages."""

import asyncio
from enum import Enum

from ..auth.permissions import Grant
from ..protocol import subjects
from ..protocol.encoding import EncodedMessage, MessagePrefix
from .interfaces import Subscriber

__all__ = ["Interest", "QueueGroup", "State", "View"]

_COMPARED = 16
"""The number of subjects whose comparison by tokens takes about as long as compiling an expression."""


class State(Enum):
    """The progress of an interest towards a subscription on the NATS server."""

    DISCONNECTED = "disconnected"
    PENDING = "pending"  # SUB was sent, or waits for its turn
    ACTIVE = "active"  # the server has confirmed the SUB
    REFUSED = "refused"  # the server has denied the SUB; the hub has dropped the interest


class View:
    """The subscribers of an interest that share a grant, and therefore get the same bytes."""

    def __init__(self, interest: "Interest", grant: Grant, prefix: MessagePrefix) -> None:
        # Set once.
        self.interest = interest
        self.grant = grant
        self.pattern = grant.pattern
        self.prefix = prefix
        self.excludes = grant.excluded.matcher() if grant.excluded else None
        # Changed by the hub only.
        self.batch: list[EncodedMessage] = []
        self.subscribers: dict[Subscriber, None] = {}

    def shows(self, encoded: bytes, subject: str) -> bool:
        """Return whether the subscribers get the messages of a subject, which is given in both forms."""
        if not self.interest.matches(encoded):
            return False
        return self.excludes is None or not self.excludes(subject)

    def take_batch(self) -> list[EncodedMessage]:
        """Remove and return the messages of this turn."""
        batch, self.batch = self.batch, []
        return batch


class QueueGroup:
    """The interests that are subscribed in one queue group, so that NATS sends a message once for all of them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.members: dict[Interest, None] = {}
        self.routes: dict[bytes, tuple[Interest, ...]] = {}
        """The members with views, by the subjects that are known to match them. `Broadcaster` adds to them."""


class Interest:
    """One pattern that NATS is asked for, and its subscribers."""

    def __init__(self, pattern: str) -> None:
        # Set once.
        self.pattern = pattern
        self.subject = pattern.encode()
        self.known_subjects: dict[bytes, str] = {}
        """Other subjects that are known to match, as NATS sends them and as strings. `Broadcaster` adds to them."""
        # Changed by the hub only.
        self._compared = 0
        self.state = State.DISCONNECTED
        self.lost_state = State.DISCONNECTED
        """The state in which the last connection has left the interest when it ended."""
        self.confirmed_or_failed = asyncio.Event()
        self.sid: int | None = None
        self.queued = False
        self.claims = 0
        self.unsubscribe_timer: asyncio.TimerHandle | None = None
        self.views: dict[str, dict[Grant, View]] = {}
        """The views with subscribers, by the client's name for the pattern. Views of one name differ only in the
        subjects that they skip."""
        self.sending_views = self.views
        """The views that get each message of the subscription: `views`, or none if it is in a queue group, whose
        messages are looked up."""
        self.group: QueueGroup | None = None
        self.number: int | None = None
        """The number of the pattern among those with wildcards."""
        self._prefixes: dict[str, MessagePrefix] = {}
        """The prefix that views of one name share."""
        self._view_count = 0
        self.sole_view: View | None = None
        """The view that all subscribers share, if it is the only one and skips no subject."""

    def matches(self, subject: bytes, /) -> object:
        """Return whether the pattern matches a subject. The result is true or false.

        The first subjects are compared by their tokens, because most patterns never see many unknown ones. Then a
        compiled expression replaces this method.
        """
        self._compared += 1
        if self._compared == _COMPARED:
            self.matches = subjects.encoded_matcher(self.pattern)  # type: ignore[method-assign]
        return subjects.matches_encoded(self.subject, subject)

    def join(self, group: QueueGroup) -> None:
        """Make the interest a member of a queue group, before it is subscribed."""
        self.group = group
        self.sending_views = {}

    def subscribers_by_view(self) -> list[tuple[View, Subscriber]]:
        """Return every subscriber with its view."""
        views = [view for alike in self.views.values() for view in alike.values()]
        return [(view, subscriber) for view in views for subscriber in view.subscribers]

    def add(self, subscriber: Subscriber, grant: Grant) -> View:
        """Add a subscriber to the view of its grant, which is made if it doesn't exist yet."""
        alike = self.views.setdefault(grant.pattern, {})
        view = alike.get(grant)
        if view is None:
            prefix = self._prefixes.get(grant.pattern) or MessagePrefix(grant.pattern, grant.alias, grant.target)
            self._prefixes[grant.pattern] = prefix
            view = alike[grant] = View(self, grant, prefix)
            self._count_views(1)
        view.subscribers[subscriber] = None
        return view

    def remove(self, subscriber: Subscriber, view: View) -> None:
        """Remove a subscriber from its view, and the view if it was the last one."""
        del view.subscribers[subscriber]
        if not view.subscribers:
            alike = self.views[view.pattern]
            del alike[view.grant]
            if not alike:
                del self.views[view.pattern]
                del self._prefixes[view.pattern]
            self._count_views(-1)

    def _count_views(self, change: int) -> None:
        # Without a look at each view: every session may have one of its own.
        self._view_count += change
        self.sole_view = None
        if self._view_count == 1:
            (alike,) = self.views.values()
            (view,) = alike.values()
            if view.excludes is None:
                self.sole_view = view
