"""The message path from NATS to the subscribers.

`Broadcaster.on_message` puts a message into the views that show it; nothing on this path awaits. At the end of the
turn of the event loop, `Broadcaster.flush` writes once to each subscriber: the same bytes to all that get the same
messages. If the writes are too many for one turn, they are done in several. Nothing more is read from NATS while eight
flushes are unfinished.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from ..auth.expirations import ExpirationQueue
from ..metrics.counters import Counters
from ..protocol import encoding
from ..protocol.encoding import EncodedMessage
from ..protocol.subjects import MAX_SUBJECT_BYTES
from .fan_out import FanOut
from .interest import Interest, QueueGroup, View
from .interfaces import Subscriber
from .mismatches import SubjectMismatches
from .queue_groups import MAX_COPIES, QueueGroups

__all__ = ["Broadcaster"]

_MAX_BATCH_BYTES = 1024 * 1024
_MAX_REMEMBERED = 4096
_ROUTES_OF_ONE_WEIGHT = 16
_COPIES_PER_TURN = 50_000
"""The number of copies of messages in several views that are added in one turn of the event loop."""
_MAX_ADDED = 1_000_000
"""The number of such copies after which a flush is due."""
_SECONDS_BEHIND = 0.01
"""The time for which messages are gathered while a flush is unfinished."""
_MAX_UNFINISHED = 8
"""The number of unfinished flushes with which no more messages are added."""
_LIMITED_PER_TURN = 10
"""The number of subscribers with too many copies whose subscriptions are ended in one turn."""
T = TypeVar("T")


class Broadcaster:
    """The messages that NATS has sent since the last flush, by the views that show them.

    Args:
        counters: Counts the messages and their deliveries.
        expirations: Asked before each flush, so that no message is written after a session's permissions have expired.
        headers: The NATS headers that clients get.
        flush_interval: Seconds for which messages are gathered, up to 1 MiB; 0 flushes once per turn of the loop.
        max_overlap: The largest number of copies of one message for one subscriber.
    """

    def __init__(
        self,
        counters: Counters,
        expirations: ExpirationQueue,
        headers: Iterable[str] = (),
        flush_interval: float = 0,
        max_overlap: int = 16,
    ) -> None:
        self._counters = counters
        self._expirations = expirations
        self._headers = frozenset(headers)
        self._interval = flush_interval
        self._max_overlap = max_overlap
        self._fan_out = FanOut(max_overlap)
        """The next flush."""
        self._unfinished: list[FanOut] = []
        """The flushes of which some subscribers wait for their messages, the oldest first."""
        self.is_behind = False
        """True while there is one."""
        self._has_room = asyncio.Event()
        self._has_room.set()
        # As many copies as arrive one by one may be too many already.
        self._always_counts = self._counts_copies = max_overlap < MAX_COPIES
        """True if some subscriber may get too many copies of a message in the next flush."""
        self.groups = QueueGroups()
        self._mismatches = SubjectMismatches(counters)
        self._remembered = 0
        self._remembering: dict[int, dict[bytes, Any]] = {}
        """The dictionaries that `_remember` has added subjects to, by their identity."""
        self._timer: asyncio.Handle | None = None
        self._next_part: asyncio.Handle | None = None
        self._hit: list[View] = []
        self._numbered = self._gathered = self._copies = 0
        self._turn_ends_at = _COPIES_PER_TURN
        """The number of copies with which a turn of the event loop ends."""
        self._adding = False
        """True if a turn of the loop has ended although more messages are to be added."""

    def on_message(self, interest: Interest, subject: bytes, headers: bytes, payload: bytes) -> bool:
        """Add a message to the views that show it.

        Returns:
            True if no more messages may be added in this turn of the event loop, nor while `is_full` is true.
        """
        if not interest.sending_views:
            if interest.group is not None:
                return self._on_group_message(interest, interest.group, subject, headers, payload)
            return False
        # An ordinary block has no status after the version, so its ninth byte ends the line.
        if headers and headers[8:9] != b"\r" and encoding.is_status(headers):
            self._counters.status_messages += 1
            return False
        if subject == interest.subject:
            text = interest.pattern
        else:
            text = interest.known_subjects.get(subject) or self._matched(interest, subject)
            if not text:
                return False
        shown = encoding.header_fields(headers, self._headers) if headers and self._headers else b""
        self._numbered += 1
        view = interest.sole_view
        if view is not None:
            # The usual case: all subscribers see the same.
            if not view.batch:
                self._hit.append(view)
            view.batch.append(EncodedMessage(view.prefix, text, shown, payload, self._numbered))
            if self._timer is None or self._interval:
                return self._flush_soon(len(payload))
            return False
        self._share(interest, text, shown, payload)
        if len(interest.views) > 1:
            self._counts_copies = True
        return self._flush_soon(len(payload))

    def _on_group_message(
        self, interest: Interest, group: QueueGroup, subject: bytes, headers: bytes, payload: bytes
    ) -> bool:
        """Add a message that NATS has sent to one member of a queue group to the views of all members that match."""
        if headers and headers[8:9] != b"\r" and encoding.is_status(headers):
            self._counters.status_messages += 1
            return False
        text = interest.known_subjects.get(subject) or self._matched(interest, subject)
        if not text:
            return False
        members = group.routes.get(subject)
        if members is None:
            members = self.groups.route(group, text)
            if len(subject) <= MAX_SUBJECT_BYTES:
                self._remember(group.routes, subject, members, 1 + len(members) // _ROUTES_OF_ONE_WEIGHT)
        if not members:
            return False
        shown = encoding.header_fields(headers, self._headers) if headers and self._headers else b""
        self._numbered += 1
        self._counts_copies = True
        first: EncodedMessage | None = None
        for member in members:
            first = self._share(member, text, shown, payload, first)
        return self._flush_soon(len(payload))

    def _share(
        self,
        interest: Interest,
        subject: str,
        headers: bytes,
        payload: bytes,
        first: EncodedMessage | None = None,
    ) -> EncodedMessage | None:
        """Add a message to all views of an interest. Views of one name share one delivery.

        Args:
            interest: The interest.
            subject: The subject of the message.
            headers: Its headers as JSON.
            payload: Its payload.
            first: The message as it was added to another interest, if it was.

        Returns:
            The message as it was added first.
        """
        for alike in interest.views.values():
            message: EncodedMessage | None = None
            self._copies += len(alike)
            for view in alike.values():
                if view.excludes is not None and view.excludes(subject):
                    continue
                if first is None:
                    first = message = EncodedMessage(view.prefix, subject, headers, payload, self._numbered)
                elif message is None:
                    message = first.under(view.prefix)
                if not view.batch:
                    self._hit.append(view)
                view.batch.append(message)
        return first

    def next_number(self) -> int:
        """Return the number of a message that is added by `add`."""
        self._numbered += 1
        return self._numbered

    def add_alone(self, view: View, message: EncodedMessage, size: int) -> bool:
        """Add a message of this size that doesn't come from a subscription of the hub, and that one view shows.

        Returns:
            True if no more messages may be added in this turn of the event loop, nor while `is_full` is true.
        """
        self._numbered += 1
        message.number = self._numbered
        if not view.batch:
            self._hit.append(view)
        view.batch.append(message)
        return self._flush_soon(size) if self._timer is None or self._interval else False

    def add(self, view: View, message: EncodedMessage) -> None:
        """Add a message that doesn't come from a subscription of the hub to one view. `added` must follow."""
        if not view.batch:
            self._hit.append(view)
        view.batch.append(message)

    def added(self, size: int, copies: int) -> bool:
        """Schedule the writes of a message of this size that was added to some views.

        Returns:
            True if no more messages may be added in this turn of the event loop, nor while `is_full` is true.
        """
        self._copies += copies
        if copies > 1:
            self._counts_copies = True
        return self._flush_soon(size)

    def _matched(self, interest: Interest, subject: bytes) -> str:
        """Return the subject of a message as a string, and remember it; empty if the pattern must not match it."""
        if not interest.matches(subject):
            # Wildcards in first place match reserved subjects by the rules of NATS, but not by those of the bridge.
            if interest.pattern[0] not in "*>" or subject[:1] not in (b"$", b"_"):
                self._mismatches.add(interest.pattern, subject)
            return ""
        try:
            text = subject.decode()
        except UnicodeDecodeError:
            self._counters.lost["unreadable_subject"] += 1
            return ""
        if len(subject) <= MAX_SUBJECT_BYTES:
            self._remember(interest.known_subjects, subject, text)
        return text

    def _remember(self, known: dict[bytes, T], subject: bytes, value: T, weight: int = 1) -> None:
        if self._remembered >= _MAX_REMEMBERED:
            for each in self._remembering.values():
                each.clear()
            self._remembering.clear()
            self._remembered = 0
        self._remembering[id(known)] = known
        known[subject] = value
        self._remembered += weight

    def flush(self) -> None:
        """Write the messages gathered so far: one write to each subscriber, in later turns if they are many."""
        if not self._hit:
            return
        if self._expirations.next <= time.time():
            self._expirations.expire_due()
        hit, self._hit = self._hit, []
        self._counters.messages += self._numbered
        self._numbered = self._gathered = self._copies = 0
        self._turn_ends_at = _COPIES_PER_TURN
        counts_copies, self._counts_copies = self._counts_copies, self._always_counts
        batches = {view: view.take_batch() for view in hit}
        fan_out = self._fan_out
        self._counters.deliveries += fan_out.begin(batches, counts_copies, self._unfinished)
        if fan_out.unfinished:
            self._unfinished.append(fan_out)
            self._fan_out = FanOut(self._max_overlap)
            self._note_unfinished()

    def flush_to(self, subscriber: Subscriber) -> None:
        """Write the messages gathered so far, and those for this subscriber at once."""
        self.flush()
        if self.is_behind:
            self._expire_due()
            for fan_out in self._unfinished:
                self._counters.deliveries += fan_out.catch_up(subscriber)

    def drop(self, subscriber: Subscriber, views: Collection[View]) -> None:
        """Write no more messages of these views to a subscriber that were left by earlier flushes."""
        for fan_out in self._unfinished:
            fan_out.drop(subscriber, views)

    @property
    def is_full(self) -> bool:
        """True if no message may be added, because too many flushes are unfinished."""
        return len(self._unfinished) >= _MAX_UNFINISHED

    async def room(self) -> None:
        """Wait until messages may be added."""
        await self._has_room.wait()

    def close(self) -> None:
        """Cancel the next flush, and the writes that are left."""
        for handle in (self._timer, self._next_part):
            if handle is not None:
                handle.cancel()
        self._timer = self._next_part = None
        self._unfinished.clear()
        self._note_unfinished()

    def _note_unfinished(self) -> None:
        self.is_behind = bool(self._unfinished)
        if self.is_behind and self._next_part is None:
            self._next_part = asyncio.get_running_loop().call_soon(self._go_on)
        if not self.is_full:
            self._has_room.set()
        elif self._has_room.is_set():
            # A new one, because an event belongs to the event loop in which it was first waited for.
            self._has_room = asyncio.Event()

    def _go_on(self) -> None:
        """Write some of the messages that are left, and others in later turns of the event loop."""
        self._next_part = None
        try:
            self._expire_due()
            if self._unfinished:
                self._write_more(self._unfinished[0])
        finally:
            self._unfinished = [fan_out for fan_out in self._unfinished if fan_out.unfinished]
            self._note_unfinished()

    def _write_more(self, fan_out: FanOut) -> None:
        for _ in range(min(len(fan_out.crowded), _LIMITED_PER_TURN)):
            subscriber, subject = fan_out.crowded.pop()
            try:
                # It ends subscriptions, and so changes the subscribers.
                subscriber.limit_overlap(subject)
            finally:
                self._counters.deliveries += fan_out.release(subscriber)
        self._counters.deliveries += fan_out.go_on()

    def _expire_due(self) -> None:
        if self._expirations.next <= time.time():
            self._expirations.expire_due()

    def _flush_soon(self, size: int) -> bool:
        """Schedule the next flush; return True if no more messages may be added in this turn of the event loop."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            # While some subscribers wait, too. The fewer flushes, the fewer writes.
            delay = self._interval or (_SECONDS_BEHIND if self._unfinished else 0)
            self._timer = loop.call_later(delay, self._timer_fired) if delay else loop.call_soon(self._timer_fired)
        self._gathered += size
        if (self._interval and self._gathered > _MAX_BATCH_BYTES) or self._copies > _MAX_ADDED:
            self.flush()
            return True
        if self._copies < self._turn_ends_at:
            return False
        self._turn_ends_at = self._copies + _COPIES_PER_TURN
        self._adding = True
        return True

    def _timer_fired(self) -> None:
        self._timer = None
        if self._adding:
            # More messages follow in this turn. The fewer flushes, the fewer writes.
            self._adding = False
            self._timer = asyncio.get_running_loop().call_soon(self._timer_fired)
        else:
            self.flush()
