"""The shared hub of NATS subscriptions: one for each pattern, however many sessions follow it.

Rules of this module:

1. It runs in one event loop, and nothing on the way of a message awaits. A message is put into the
   batch of this turn of the loop; `Hub.flush`, at the turn's end, writes once to each subscriber.
2. Who gets a batch never changes while it holds messages: whatever adds or removes a subscriber, or
   writes a frame whose place among the messages matters, flushes first.
3. An interest is claimed by each session that holds it, and by each command that waits for it; the
   last claim given up starts its linger, after which NATS hears UNSUB.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Final

from . import wire
from .errors import NatsRefused
from .fan_out import fan_out
from .interest import Interest, Link, LinkWatcher, State, Subscriber
from .subjects import is_reserved
from .wire import Delivery

__all__ = ["Hub"]

_MAX_GATHERED_BYTES: Final = 1024 * 1024


class Hub:
    """Pattern → interest; and the fan-out."""

    def __init__(self, link: Link, *, linger: float, headers: Iterable[str] = (), flush_interval: float = 0) -> None:
        self._link = link
        self._linger = linger
        self._flush_interval = flush_interval
        self._flush_timer: asyncio.Handle | None = None
        self._headers = frozenset(headers)
        self._interests: dict[str, Interest] = {}
        self._hit: list[Interest] = []
        self._numbered = self._gathered = 0
        self._unanswered: set[Interest] = set()
        self._watcher: LinkWatcher | None = None
        self.connected = False
        self.unreadable = 0

    def watch(self, watcher: LinkWatcher) -> None:
        """Tell the watcher how the connection fares."""
        self._watcher = watcher

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that NATS was, or shall be, asked for."""
        return tuple(self._interests)

    # Commands

    def claim(self, patterns: Sequence[str]) -> list[Interest]:
        """The interests in these patterns, made where there are none; each to be attached or released."""
        return [self._claim(pattern) for pattern in patterns]

    async def confirm(self, interests: Sequence[Interest], seconds: float) -> None:
        """Wait until NATS has answered for these claimed interests, or is away, or the time is over.

        Raises:
            NatsRefused: The server has refused some of them.
        """
        pending = [interest for interest in interests if interest.state is State.PENDING]
        if pending:
            try:
                async with asyncio.timeout(seconds):
                    for interest in pending:
                        await interest.settled.wait()
            except TimeoutError:
                pass
        refused = [interest.pattern for interest in interests if interest.state is State.REFUSED]
        if refused:
            raise _refusal(refused)

    def release(self, interests: Iterable[Interest]) -> None:
        """Give claims up."""
        for interest in interests:
            interest.claims -= 1
            # One that was refused, or closed, is here no longer.
            if not interest.claims and self._interests.get(interest.pattern) is interest:
                loop = asyncio.get_running_loop()
                interest.linger = loop.call_later(self._linger, self._forget, interest)

    def attach(self, subscriber: Subscriber, interests: Iterable[Interest]) -> None:
        """Deliver to the subscriber from here on; the claims are its own now."""
        self.flush()
        for interest in interests:
            interest.subscribers[subscriber] = None

    def detach(self, subscriber: Subscriber, interests: Iterable[Interest]) -> None:
        """Deliver nothing more to the subscriber, and give its claims up."""
        self.flush()
        held = [interest for interest in interests if subscriber in interest.subscribers]
        for interest in held:
            del interest.subscribers[subscriber]
        self.release(held)

    def _claim(self, pattern: str) -> Interest:
        interest = self._interests.get(pattern)
        if interest is None:
            interest = self._interests[pattern] = Interest(pattern)
        if interest.linger is not None:
            interest.linger.cancel()
            interest.linger = None
        interest.claims += 1
        if interest.sid is None:
            self._ask(interest)
        return interest

    def _ask(self, interest: Interest) -> None:
        interest.sid = self._link.subscribe(interest.pattern, interest)
        if interest.sid is None:
            interest.state = State.AWAY
            return
        interest.state = State.PENDING
        interest.settled.clear()
        if not self.connected:
            self._unanswered.add(interest)

    def _forget(self, interest: Interest) -> None:
        del self._interests[interest.pattern]
        if interest.sid is not None:
            self._link.unsubscribe(interest.sid)
        self._answered(interest)

    # Messages

    def dispatch(self, interest: Interest, subject: bytes, headers: bytes, payload: bytes) -> None:
        """Put a message into the batch of this turn of the event loop."""
        if not interest.subscribers:
            return
        text = interest.pattern
        if interest.source.wildcard:
            try:
                text = subject.decode()
            except UnicodeDecodeError:
                self.unreadable += 1
                return
            if interest.shuns_reserved and is_reserved(text):
                return
        shown = wire.header_fields(headers, self._headers) if headers and self._headers else b""
        if self._flush_timer is None:
            self._schedule_flush()
        if not interest.batch:
            self._hit.append(interest)
        self._numbered += 1
        interest.batch.append(Delivery(interest.source, text, shown, payload, self._numbered))
        if self._flush_interval:
            self._gathered += len(payload)
            if self._gathered > _MAX_GATHERED_BYTES:
                self.flush()

    def _schedule_flush(self) -> None:
        loop = asyncio.get_running_loop()
        if self._flush_interval:
            self._flush_timer = loop.call_later(self._flush_interval, self._flush_in_time)
        else:
            self._flush_timer = loop.call_soon(self._flush_in_time)

    def _flush_in_time(self) -> None:
        self._flush_timer = None
        self.flush()

    def flush(self) -> None:
        """Write the batch: once to each subscriber, the same bytes to all that get the same messages."""
        if not self._hit:
            return
        hit, self._hit = self._hit, []
        self._numbered = self._gathered = 0
        fan_out({interest: interest.take_batch() for interest in hit})

    # The link's side

    def confirmed(self, interest: Interest) -> None:
        """The NATS server has the subscription."""
        interest.state = State.LIVE
        interest.settled.set()
        if self.connected:
            for subscriber in tuple(interest.subscribers):
                subscriber.activated(interest.pattern)
        self._answered(interest)

    def refused(self, interest: Interest) -> None:
        """The NATS server does not have the subscription, or has it no longer."""
        self.flush()
        interest.state = State.REFUSED
        interest.settled.set()
        if interest.linger is not None:
            interest.linger.cancel()
        del self._interests[interest.pattern]
        for subscriber in tuple(interest.subscribers):
            subscriber.ended(interest.pattern, _refusal([interest.pattern]))
        interest.subscribers.clear()
        self._answered(interest)

    def link_up(self) -> None:
        """Ask the new connection for every interest that is still claimed."""
        if self._watcher is not None:
            self._watcher.nats_returned()
        for interest in tuple(self._interests.values()):
            if interest.claims:
                self._ask(interest)
        self._answered(None)

    def link_down(self) -> None:
        """The connection has ended: nothing is subscribed any more."""
        self.flush()
        self._unanswered.clear()
        self.connected = False
        if self._watcher is not None:
            self._watcher.nats_lost()
        for interest in self._interests.values():
            interest.state = State.AWAY
            interest.sid = None
            interest.settled.set()

    def close(self) -> None:
        """Forget every interest; the connection is gone, and so are the subscribers."""
        self.link_down()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for interest in self._interests.values():
            if interest.linger is not None:
                interest.linger.cancel()
        self._interests.clear()

    def _answered(self, interest: Interest | None) -> None:
        if interest is not None:
            if interest not in self._unanswered:
                return
            self._unanswered.discard(interest)
        if not self._unanswered and not self.connected:
            self.connected = True
            if self._watcher is not None:
                self._watcher.nats_connected()


def _refusal(patterns: Sequence[str]) -> NatsRefused:
    names = ", ".join(f"'{pattern}'" for pattern in patterns)
    return NatsRefused(f"NATS does not let this server follow {names}", patterns)
