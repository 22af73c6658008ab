"""The hub of NATS subscriptions, shared by all sessions of a worker: one per pattern.

Rules of this module:

1. The subscribers of a view never change while its batch holds messages. Code that adds or removes a subscriber
   flushes first. The exception is `detach` with ``cut``, after which the subscriber must see nothing more.
   A flush may leave messages for later turns of the event loop. Code that removes a subscriber, or writes a frame whose
   position among the messages matters, calls `flush_to` first.
2. Each session that holds an interest claims it, and so does each command that waits for it. When the last claim
   is released, the interest lingers; then UNSUB is sent.
3. SUB and UNSUB that clients cause pass through the throttle. A new connection sends its SUBs at once, but some in
   each turn of the event loop only. What many subscribers are notified of is spread in the same way.
4. After the views of an interest were changed, `QueueGroups.update` follows.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from ..auth.permissions import Grant
from ..errors import NatsRefused, SubscriptionLimitExceeded
from ..metrics.counters import Counters
from .broadcast import Broadcaster
from .interest import Interest, State, View
from .interfaces import Link, Subscriber
from .throttle import SubscribeThrottle

__all__ = ["Hub", "refused_by_nats"]

_SUBSCRIBED_PER_TURN = 250
_ENDED_PER_TURN = 100
_NOTIFIED_PER_TURN = 250


class Hub:
    """The interests of one worker, by their patterns.

    Args:
        link: The connection to NATS.
        broadcaster: The message path.
        counters: Counts the connections to NATS.
        on_disconnected: Called when the connection has ended.
        on_established: Called when a new connection is established, with a function. Nothing is subscribed, and so no
            message is delivered, until that is called.
        on_connected: Called when NATS has answered for each pattern that was subscribed at that moment.
        unsubscribe_delay: Seconds before UNSUB is sent after the last claim was released.
        max_patterns: The largest number of interests.
        max_subscribe_rate: The largest number of SUB and UNSUB per second that clients may cause.
    """

    def __init__(
        self,
        link: Link,
        broadcaster: Broadcaster,
        counters: Counters,
        *,
        on_disconnected: Callable[[], None],
        on_established: Callable[[Callable[[], None]], None],
        on_connected: Callable[[], None],
        unsubscribe_delay: float,
        max_patterns: int = 20_000,
        max_subscribe_rate: float = 1000,
    ) -> None:
        self._link = link
        self._broadcaster = broadcaster
        self._groups = broadcaster.groups
        self._counters = counters
        self._on_disconnected = on_disconnected
        self._on_established = on_established
        self._on_connected = on_connected
        self._unsubscribe_delay = unsubscribe_delay
        self._max_patterns = max_patterns
        # Bound to Broadcaster.on_message: a method of the hub in between would cost a call per message.
        self.on_message = broadcaster.on_message
        self.flush = broadcaster.flush
        self.flush_to = broadcaster.flush_to
        self.room = broadcaster.room
        self._interests: dict[str, Interest] = {}
        self._idle: dict[Interest, None] = {}
        self._throttle = SubscribeThrottle(max_subscribe_rate, self._sync)
        self._unanswered: set[Interest] = set()
        self._unsent: deque[Interest] = deque()
        """The interests whose SUB is still to be sent on a new connection."""
        self._all_sent = asyncio.Event()
        self._refused: deque[Interest] = deque()
        """The refused interests with subscribers that don't know of it yet."""
        self._ending: Iterator[tuple[View, Subscriber]] | None = None
        self._confirmed: deque[Interest] = deque()
        """The confirmed interests with subscribers that don't know of it yet."""
        self._confirming: Iterator[tuple[View, Subscriber]] | None = None
        self._up = False
        self._awaited = 0
        """The number of the connection that is established, but waits for the end of `on_established`."""
        self.losses = 0
        """The number of connections that have ended."""
        self.connected = False
        """True if NATS has answered for every pattern since the connection was established."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns of all interests."""
        return tuple(self._interests)

    @property
    def is_behind(self) -> bool:
        """True while some subscribers wait for messages that were flushed."""
        return self._broadcaster.is_behind

    @property
    def is_full(self) -> bool:
        """True if no message may be delivered, because too many subscribers wait. `room` waits for the end of that."""
        return self._broadcaster.is_full

    # Commands

    def acquire(self, patterns: Sequence[str], owner: object = None) -> list[Interest]:
        """Claim the interests in these patterns, which are made if they don't exist yet.

        The caller must attach or release each of them.

        Args:
            patterns: The real patterns.
            owner: The session that causes the SUBs; the throttle serves owners in turn.

        Raises:
            SubscriptionLimitExceeded: The worker would have more than ``max_patterns``; nothing was claimed.
        """
        self._make_room({*patterns})
        return [self._acquire(pattern, owner) for pattern in patterns]

    async def confirm(self, interests: Iterable[Interest], seconds: float) -> None:
        """Wait until NATS has answered for these claimed interests, or is disconnected, or the seconds have passed."""
        pending = [interest for interest in interests if interest.state is State.PENDING]
        if pending:
            try:
                async with asyncio.timeout(seconds):
                    for interest in pending:
                        await interest.confirmed_or_failed.wait()
            except TimeoutError:
                pass

    def release(self, interests: Iterable[Interest]) -> None:
        """Release claims."""
        for interest in interests:
            interest.claims -= 1
            # A refused interest is no longer in the hub.
            if not interest.claims and self._interests.get(interest.pattern) is interest:
                self._idle[interest] = None
                loop = asyncio.get_running_loop()
                interest.unsubscribe_timer = loop.call_later(self._unsubscribe_delay, self._unsubscribe, interest)

    def attach(self, subscriber: Subscriber, claimed: Iterable[tuple[Interest, Grant]]) -> list[View]:
        """Deliver messages of claimed interests to the subscriber, as its grants allow; it takes over the claims."""
        self.flush()
        views = []
        for interest, grant in claimed:
            views.append(interest.add(subscriber, grant))
            self._groups.update(interest)
        return views

    def change(self, subscriber: Subscriber, view: View, grant: Grant) -> View:
        """Replace the grant with which the subscriber gets a pattern."""
        self.flush_to(subscriber)
        # Added first, so that a queue group doesn't see the interest without views.
        changed = view.interest.add(subscriber, grant)
        view.interest.remove(subscriber, view)
        return changed

    def detach(self, subscriber: Subscriber, views: Iterable[View], *, cut: bool = False) -> None:
        """Deliver no more messages to the subscriber, and release its claims.

        With ``cut``, messages that were received but not written yet are dropped too.
        """
        views = tuple(views)
        if cut:
            self._broadcaster.drop(subscriber, frozenset(views))
        else:
            self.flush_to(subscriber)
        held = [view for view in views if subscriber in view.subscribers]
        for view in held:
            view.interest.remove(subscriber, view)
            self._groups.update(view.interest)
        self.release(view.interest for view in held)

    def _make_room(self, wanted: set[str]) -> None:
        known = [interest for pattern in wanted if (interest := self._interests.get(pattern)) is not None]
        too_many = len(self._interests) + len(wanted) - len(known) - self._max_patterns
        if too_many <= 0:
            return
        if too_many > len(self._idle) - sum(interest in self._idle for interest in known):
            raise SubscriptionLimitExceeded("This server has too many subjects (max_patterns); try again later")
        spare = (interest for interest in self._idle if interest.pattern not in wanted)
        for interest in list(islice(spare, too_many)):
            self._unsubscribe(interest)
            self._drop(interest)

    def _acquire(self, pattern: str, owner: object) -> Interest:
        interest = self._interests.get(pattern)
        if interest is None:
            interest = self._interests[pattern] = Interest(pattern)
            self._groups.add(interest)
        self._idle.pop(interest, None)
        if interest.unsubscribe_timer is not None:
            interest.unsubscribe_timer.cancel()
            interest.unsubscribe_timer = None
        interest.claims += 1
        if self._up and interest.sid is None and not interest.queued:
            self._mark_pending(interest)
            self._queue(interest, owner)
        return interest

    def _mark_pending(self, interest: Interest) -> None:
        interest.state = State.PENDING
        interest.confirmed_or_failed.clear()

    def _unsubscribe(self, interest: Interest) -> None:
        """Unsubscribe from an interest that was not claimed during the unsubscribe delay."""
        if interest.unsubscribe_timer is not None:
            interest.unsubscribe_timer.cancel()
            interest.unsubscribe_timer = None
        if interest.sid is None:
            self._drop(interest)
        elif not interest.queued:
            self._queue(interest, None)

    def _queue(self, interest: Interest, owner: object) -> None:
        interest.queued = True
        self._throttle.submit(interest, owner)

    def _sync(self, interest: Interest) -> bool:
        """Send the SUB or UNSUB that the interest needs now; return whether it needed one."""
        interest.queued = False
        if interest.state is State.REFUSED:
            return False
        if interest.sid is None:
            return bool(interest.claims) and self._subscribe(interest)
        if interest.claims or interest.unsubscribe_timer is not None:
            return False
        self._drop(interest)
        self._link.unsubscribe(interest.sid)
        return True

    def _subscribe(self, interest: Interest) -> bool:
        group = 0 if interest.group is None else interest.group.number
        interest.sid = self._link.subscribe(interest.pattern, interest, group)
        return interest.sid is not None

    def _drop(self, interest: Interest) -> None:
        self._remove(interest)
        self._answered(interest)

    def _remove(self, interest: Interest) -> None:
        self._idle.pop(interest, None)
        if self._interests.get(interest.pattern) is interest:
            del self._interests[interest.pattern]
            self._groups.discard(interest)

    # Events of the connection

    def delivery_failed(self, interest: Interest) -> None:
        """Notify the subscribers that a fault of the bridge has lost a message."""
        self.flush()
        for member in (interest,) if interest.group is None else tuple(interest.group.members):
            for view, subscriber in member.subscribers_by_view():
                subscriber.messages_lost(view.pattern)

    def confirmed(self, interest: Interest) -> None:
        """Note that the NATS server has confirmed the subscription."""
        interest.state = State.ACTIVE
        interest.confirmed_or_failed.set()
        if self.connected:
            self._confirmed.append(interest)
            if self._confirming is None:
                self._confirming = self._take_subscribers_of_confirmed()
                self._notify_confirmed()
        self._answered(interest)

    def _take_subscribers_of_confirmed(self) -> Iterator[tuple[View, Subscriber]]:
        while self._confirmed:
            interest = self._confirmed.popleft()
            for view, subscriber in interest.subscribers_by_view():
                # They may have changed since the turn before.
                if interest.state is State.ACTIVE and subscriber in view.subscribers:
                    yield view, subscriber

    def _notify_confirmed(self) -> None:
        """Notify some subscribers of confirmed interests, and the others in later turns of the event loop."""
        if self._confirming is None:
            return
        count = 0
        is_last = False
        try:
            for view, subscriber in islice(self._confirming, _NOTIFIED_PER_TURN):
                count += 1
                subscriber.subscription_active(view.pattern)
            is_last = count < _NOTIFIED_PER_TURN
        finally:
            if is_last:
                self._confirming = None
            else:
                asyncio.get_running_loop().call_soon(self._notify_confirmed)

    def refused(self, interest: Interest) -> None:
        """End the subscriptions of an interest that the NATS server has denied or ended."""
        self.flush()
        interest.state = State.REFUSED
        interest.sid = None
        interest.confirmed_or_failed.set()
        if interest.unsubscribe_timer is not None:
            interest.unsubscribe_timer.cancel()
        self._remove(interest)
        self._refused.append(interest)
        if self._ending is None:
            self._ending = self._take_subscribers_of_refused()
            self._end_refused()
        self._answered(interest)

    def _take_subscribers_of_refused(self) -> Iterator[tuple[View, Subscriber]]:
        while self._refused:
            interest = self._refused[0]
            # More than once, because new permissions may move a subscriber to another view meanwhile.
            while subscribers := interest.subscribers_by_view():
                for view, subscriber in subscribers:
                    if subscriber in view.subscribers:
                        interest.remove(subscriber, view)
                        yield view, subscriber
            self._refused.popleft()

    def _end_refused(self) -> None:
        """End some subscriptions to refused interests, and the others in later turns of the event loop."""
        if self._ending is None:
            return
        try:
            for view, subscriber in islice(self._ending, _ENDED_PER_TURN):
                subscriber.subscription_ended(view.pattern, refused_by_nats([view.pattern]))
        finally:
            if self._refused:
                asyncio.get_running_loop().call_soon(self._end_refused)
            else:
                self._ending = None

    def connection_established(self) -> None:
        """Subscribe to every claimed interest on a new connection; `subscribed` waits for the end of that."""
        self._counters.nats_connections += 1
        self._all_sent = asyncio.Event()
        self._awaited = number = self._counters.nats_connections
        self._on_established(lambda: self._resubscribe(number))

    def _resubscribe(self, number: int) -> None:
        """Subscribe to every claimed interest on the connection of this number, unless it has ended."""
        if number != self._awaited:
            return
        self._awaited = 0
        self._up = True
        for interest in tuple(self._interests.values()):
            if interest.claims:
                self._mark_pending(interest)
                # Interests that are claimed later don't count: else clients that keep subscribing would delay the
                # status of the others.
                self._unanswered.add(interest)
                interest.queued = True
                self._unsent.append(interest)
        self._send_some()
        self._answered(None)

    async def subscribed(self) -> None:
        """Wait until every SUB of a new connection was sent."""
        await self._all_sent.wait()

    def _send_some(self) -> None:
        """Send the SUBs of some interests, and of the others in later turns of the event loop."""
        for _ in range(min(len(self._unsent), _SUBSCRIBED_PER_TURN)):
            self._sync(self._unsent.popleft())
        if self._unsent:
            asyncio.get_running_loop().call_soon(self._send_some)
        else:
            self._all_sent.set()

    def connection_closed(self) -> None:
        """Note that the connection has ended, and every subscription with it."""
        self.flush()
        self._up = self.connected = False
        self._awaited = 0
        self._unanswered.clear()
        self._unsent.clear()
        self._throttle.clear()
        self._confirmed.clear()
        self._confirming = None
        for interest in tuple(self._interests.values()):
            if interest.state is not State.DISCONNECTED:
                interest.lost_state = interest.state
            interest.state = State.DISCONNECTED
            interest.sid = None
            interest.queued = False
            interest.confirmed_or_failed.set()
            if not interest.claims and interest.unsubscribe_timer is None:
                self._drop(interest)
        self.losses += 1
        self._on_disconnected()

    def close(self) -> None:
        """Drop every interest. The connection and all subscribers must have ended."""
        self.connection_closed()
        self._broadcaster.close()
        for interest in tuple(self._interests.values()):
            if interest.unsubscribe_timer is not None:
                interest.unsubscribe_timer.cancel()
            self._remove(interest)
        self._refused.clear()
        self._ending = None

    def _answered(self, interest: Interest | None) -> None:
        if interest is not None:
            if interest not in self._unanswered:
                return
            self._unanswered.discard(interest)
        if self._up and not self._unanswered and not self.connected:
            self.connected = True
            self._on_connected()


def refused_by_nats(patterns: Sequence[str]) -> NatsRefused:
    """Return the error for patterns, as a client names them, that NATS has refused."""
    names = ", ".join(f"'{pattern}'" for pattern in patterns)
    return NatsRefused(f"NATS does not allow this server to subscribe to {names}", patterns)
