"""The shared hub of NATS subscriptions: one for each pattern, however many sessions follow it.

Rules of this module:

1. Who gets a batch never changes while it holds messages: whatever adds or removes a subscriber, or
   writes a frame whose place among the messages matters, flushes first. Only who must see nothing
   more is cut off without.
2. An interest is claimed by each session that holds it, and by each command that waits for it; the
   last claim given up starts its linger, after which NATS hears UNSUB.
3. What clients cause reaches NATS by way of the pacing; what a new connection needs, at once.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from ..auth.permissions import Grant
from ..errors import NatsRefused, SubscriptionLimit
from ..metrics.counters import Tally
from .broadcast import Batch
from .interest import Interest, Link, LinkWatcher, State, Subscriber, View
from .throttle import Pacing

__all__ = ["Hub", "refusal"]


class Hub:
    """Pattern → interest."""

    def __init__(
        self,
        link: Link,
        *,
        linger: float,
        headers: Iterable[str] = (),
        flush_interval: float = 0,
        max_patterns: int = 20_000,
        max_sub_rate: float = 1000,
    ) -> None:
        self._link = link
        self._linger = linger
        self._max_patterns = max_patterns
        self.tally: Final = Tally()
        self.batch: Final = Batch(headers, flush_interval, self.tally)
        # Called for each message: no function of ours between.
        self.dispatch: Final = self.batch.add
        self.flush: Final = self.batch.flush
        self._interests: dict[str, Interest] = {}
        self._idle: dict[Interest, None] = {}
        self._pacing = Pacing(max_sub_rate, self._bring)
        self._unanswered: set[Interest] = set()
        self._watcher: LinkWatcher | None = None
        self._up = False
        self.connected = False

    def watch(self, watcher: LinkWatcher) -> None:
        """Tell the watcher how the connection fares."""
        self._watcher = watcher

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that NATS was, or shall be, asked for."""
        return tuple(self._interests)

    # Commands

    def claim(self, patterns: Sequence[str], owner: object = None) -> list[Interest]:
        """The interests in these patterns, made where there are none; each to be attached or released.

        Raises:
            SubscriptionLimit: They would be more than the worker may follow; nothing is claimed.
        """
        self._make_room({*patterns})
        return [self._claim(pattern, owner) for pattern in patterns]

    async def confirm(self, interests: Iterable[Interest], seconds: float) -> None:
        """Wait until NATS has answered for these claimed interests, or is away, or the time is over."""
        pending = [interest for interest in interests if interest.state is State.PENDING]
        if pending:
            try:
                async with asyncio.timeout(seconds):
                    for interest in pending:
                        await interest.settled.wait()
            except TimeoutError:
                pass

    def release(self, interests: Iterable[Interest]) -> None:
        """Give claims up."""
        for interest in interests:
            interest.claims -= 1
            # One that was refused, or closed, is here no longer.
            if not interest.claims and self._interests.get(interest.pattern) is interest:
                self._idle[interest] = None
                loop = asyncio.get_running_loop()
                interest.linger = loop.call_later(self._linger, self._give_up, interest)

    def attach(self, subscriber: Subscriber, claimed: Iterable[tuple[Interest, Grant]]) -> list[View]:
        """Deliver to the subscriber from here on, as the grants say; the claims are its own now."""
        self.flush()
        return [interest.add(subscriber, grant) for interest, grant in claimed]

    def change(self, subscriber: Subscriber, view: View, grant: Grant) -> View:
        """Deliver the same pattern to the subscriber as another grant says."""
        self.flush()
        view.interest.remove(subscriber, view)
        return view.interest.add(subscriber, grant)

    def detach(self, subscriber: Subscriber, views: Iterable[View], *, cut: bool = False) -> None:
        """Deliver nothing more to the subscriber, and give its claims up; ``cut``: not even what has come already."""
        if not cut:
            self.flush()
        held = [view for view in views if subscriber in view.subscribers]
        for view in held:
            view.interest.remove(subscriber, view)
        self.release(view.interest for view in held)

    def _make_room(self, wanted: set[str]) -> None:
        too_many = len(self._interests.keys() | wanted) - self._max_patterns
        if too_many <= 0:
            return
        spare = [interest for interest in self._idle if interest.pattern not in wanted]
        if too_many > len(spare):
            raise SubscriptionLimit("This server follows as many subjects as it may; try again later")
        for interest in spare[:too_many]:
            self._give_up(interest)
            self._drop(interest)

    def _claim(self, pattern: str, owner: object) -> Interest:
        interest = self._interests.get(pattern)
        if interest is None:
            interest = self._interests[pattern] = Interest(pattern)
        self._idle.pop(interest, None)
        if interest.linger is not None:
            interest.linger.cancel()
            interest.linger = None
        interest.claims += 1
        if self._up and interest.sid is None and not interest.queued:
            self._await_answer(interest)
            self._queue(interest, owner)
        return interest

    def _await_answer(self, interest: Interest) -> None:
        interest.state = State.PENDING
        interest.settled.clear()

    def _give_up(self, interest: Interest) -> None:
        """Nobody has claimed it for as long as it lingers."""
        if interest.linger is not None:
            interest.linger.cancel()
            interest.linger = None
        if interest.sid is None:
            self._drop(interest)
        elif not interest.queued:
            self._queue(interest, None)

    def _queue(self, interest: Interest, owner: object) -> None:
        interest.queued = True
        self._pacing.bring(interest, owner)

    def _bring(self, interest: Interest) -> bool:
        """Bring to NATS what has become of the interest meanwhile; returns whether that took a SUB or an UNSUB."""
        interest.queued = False
        if interest.state is State.REFUSED:
            return False
        if interest.sid is None:
            return bool(interest.claims) and self._ask(interest)
        if interest.claims or interest.linger is not None:
            return False
        self._drop(interest)
        self._link.unsubscribe(interest.sid)
        return True

    def _ask(self, interest: Interest) -> bool:
        interest.sid = self._link.subscribe(interest.pattern, interest)
        return interest.sid is not None

    def _drop(self, interest: Interest) -> None:
        self._remove(interest)
        self._answered(interest)

    def _remove(self, interest: Interest) -> None:
        self._idle.pop(interest, None)
        if self._interests.get(interest.pattern) is interest:
            del self._interests[interest.pattern]

    # The link's side

    def undelivered(self, interest: Interest) -> None:
        """A fault of ours has lost a message: tell all who follow."""
        self.flush()
        for view, subscriber in interest.followers():
            subscriber.missed(view.pattern)

    def confirmed(self, interest: Interest) -> None:
        """The NATS server has the subscription."""
        interest.state = State.LIVE
        interest.settled.set()
        if self.connected:
            for view, subscriber in interest.followers():
                subscriber.activated(view.pattern)
        self._answered(interest)

    def refused(self, interest: Interest) -> None:
        """The NATS server does not have the subscription, or has it no longer."""
        self.flush()
        interest.state = State.REFUSED
        interest.sid = None
        interest.settled.set()
        if interest.linger is not None:
            interest.linger.cancel()
        self._remove(interest)
        for view, subscriber in interest.followers():
            subscriber.ended(view.pattern, refusal([view.pattern]))
        interest.views.clear()
        self._answered(interest)

    def link_up(self) -> None:
        """Ask the new connection for every interest that is still claimed."""
        self._up = True
        self.tally.nats_connections += 1
        if self._watcher is not None:
            self._watcher.nats_returned()
        for interest in tuple(self._interests.values()):
            if interest.claims:
                self._await_answer(interest)
                # Not what is claimed later: clients that go on asking would keep the others from being told.
                self._unanswered.add(interest)
                self._ask(interest)
        self._answered(None)

    def link_down(self) -> None:
        """The connection has ended: nothing is subscribed any more."""
        self.flush()
        self._up = self.connected = False
        self._unanswered.clear()
        self._pacing.forget()
        if self._watcher is not None:
            self._watcher.nats_lost()
        for interest in tuple(self._interests.values()):
            interest.state = State.AWAY
            interest.sid = None
            interest.queued = False
            interest.settled.set()
            if not interest.claims and interest.linger is None:
                self._drop(interest)

    def close(self) -> None:
        """Forget every interest; the connection is gone, and so are the subscribers."""
        self.link_down()
        self.batch.close()
        for interest in self._interests.values():
            if interest.linger is not None:
                interest.linger.cancel()
        self._interests.clear()
        self._idle.clear()

    def _answered(self, interest: Interest | None) -> None:
        if interest is not None:
            if interest not in self._unanswered:
                return
            self._unanswered.discard(interest)
        if self._up and not self._unanswered and not self.connected:
            self.connected = True
            if self._watcher is not None:
                self._watcher.nats_connected()


def refusal(patterns: Sequence[str]) -> NatsRefused:
    """What a client is told of patterns, as it names them, that NATS has refused."""
    names = ", ".join(f"'{pattern}'" for pattern in patterns)
    return NatsRefused(f"NATS does not let this server follow {names}", patterns)
