"""The message path from NATS to the subscribers.

`Broadcaster.on_message` puts a message into the views that show it; nothing on this path awaits. At the end of the
turn of the event loop, `Broadcaster.flush` writes once to each subscriber: the same bytes to all that get the same
messages.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

from ..auth.expirations import ExpirationQueue
from ..log_limits import limited_logger
from ..metrics.counters import Counters
from ..protocol import encoding
from ..protocol.encoding import EncodedMessage, WireFormat
from ..protocol.subjects import MAX_SUBJECT_BYTES
from .interest import Interest, QueueGroup, View
from .interfaces import Subscriber
from .mismatches import SubjectMismatches
from .queue_groups import MAX_COPIES, QueueGroups

__all__ = ["Broadcaster", "fan_out"]

logger = limited_logger()

_MAX_BATCH_BYTES = 1024 * 1024
_MAX_REMEMBERED = 4096
_ROUTES_OF_ONE_WEIGHT = 16
_OTHER_COPIES = MAX_COPIES - 1
"""The copies of a message that may arrive beside the one for a queue group."""
_number = attrgetter("number")
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
        # As many copies as arrive one by one may be too many already.
        self._always_counts = self._counts_copies = max_overlap < MAX_COPIES
        """True if some subscriber may get too many copies of a message in the next flush."""
        self.groups = QueueGroups()
        self._mismatches = SubjectMismatches(counters)
        self._remembered = 0
        self._remembering: dict[int, dict[bytes, Any]] = {}
        """The dictionaries that `_remember` has added subjects to, by their identity."""
        self._timer: asyncio.Handle | None = None
        self._hit: list[View] = []
        self._numbered = self._gathered = 0

    def on_message(self, interest: Interest, subject: bytes, headers: bytes, payload: bytes) -> None:
        """Add a message to the views that show it."""
        if not interest.sending_views:
            if interest.group is not None:
                self._on_group_message(interest, interest.group, subject, headers, payload)
            return
        # An ordinary block has no status after the version, so its ninth byte ends the line.
        if headers and headers[8:9] != b"\r" and encoding.is_status(headers):
            self._counters.status_messages += 1
            return
        if subject == interest.subject:
            text = interest.pattern
        else:
            text = interest.known_subjects.get(subject) or self._matched(interest, subject)
            if not text:
                return
        shown = encoding.header_fields(headers, self._headers) if headers and self._headers else b""
        self._numbered += 1
        view = interest.sole_view
        if view is not None:
            # The usual case: all subscribers see the same.
            if not view.batch:
                self._hit.append(view)
            view.batch.append(EncodedMessage(view.prefix, text, shown, payload, self._numbered))
        else:
            self._share(interest, text, shown, payload)
            if len(interest.views) > 1:
                self._counts_copies = True
        if self._timer is None or self._interval:
            self._flush_soon(len(payload))

    def _on_group_message(
        self, interest: Interest, group: QueueGroup, subject: bytes, headers: bytes, payload: bytes
    ) -> None:
        """Add a message that NATS has sent to one member of a queue group to the views of all members that match."""
        if headers and headers[8:9] != b"\r" and encoding.is_status(headers):
            self._counters.status_messages += 1
            return
        text = interest.known_subjects.get(subject) or self._matched(interest, subject)
        if not text:
            return
        members = group.routes.get(subject)
        if members is None:
            members = self.groups.route(group, text)
            if len(subject) <= MAX_SUBJECT_BYTES:
                self._remember(group.routes, subject, members, 1 + len(members) // _ROUTES_OF_ONE_WEIGHT)
        if not members:
            return
        shown = encoding.header_fields(headers, self._headers) if headers and self._headers else b""
        self._numbered += 1
        self._counts_copies = True
        first: EncodedMessage | None = None
        for member in members:
            first = self._share(member, text, shown, payload, first)
        if self._timer is None or self._interval:
            self._flush_soon(len(payload))

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
        """Write the messages gathered so far: one write to each subscriber."""
        if not self._hit:
            return
        if self._expirations.next <= time.time():
            self._expirations.expire_due()
        hit, self._hit = self._hit, []
        self._counters.messages += self._numbered
        self._numbered = self._gathered = 0
        crowded: list[tuple[Subscriber, str]] | None = [] if self._counts_copies else None
        self._counts_copies = self._always_counts
        self._counters.deliveries += fan_out({view: view.take_batch() for view in hit}, self._max_overlap, crowded)
        # Last, because it ends subscriptions, and so changes the subscribers.
        for subscriber, subject in crowded or ():
            subscriber.limit_overlap(subject)

    def close(self) -> None:
        """Cancel the next flush."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush_soon(self, size: int) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            if self._interval:
                self._timer = loop.call_later(self._interval, self._timer_fired)
            else:
                self._timer = loop.call_soon(self._timer_fired)
        self._gathered += size
        if self._interval and self._gathered > _MAX_BATCH_BYTES:
            self.flush()

    def _timer_fired(self) -> None:
        self._timer = None
        self.flush()


def fan_out(
    batches: Mapping[View, Sequence[EncodedMessage]],
    max_overlap: int = 16,
    crowded: list[tuple[Subscriber, str]] | None = None,
) -> int:
    """Write the batches of all views, in the order of the messages' numbers.

    A subscriber of several views gets one write with their messages merged.

    Args:
        batches: The messages by views.
        max_overlap: The largest number of copies of one message for one subscriber.
        crowded: Subscribers that got more copies, and the subject of such a message, are added to it, if it is given.

    Returns:
        The number of deliveries: a message to ten subscribers counts ten times.
    """
    messages = 0
    several = _with_several_views(batches) if len(batches) > 1 else {}
    for view, batch in batches.items():
        subscribers: Collection[Subscriber] = view.subscribers
        if several:
            subscribers = [each for each in subscribers if each not in several]
        messages += _write(subscribers, batch)
    for views, subscribers in _by_views(several).items():
        merged = [message for view in views for message in batches[view]]
        merged.sort(key=_number)
        messages += _write(subscribers, merged)
        if crowded is not None and len(views) > max_overlap - _OTHER_COPIES:
            subject = _crowded_subject(views, merged, max_overlap)
            if subject is not None:
                crowded += [(subscriber, subject) for subscriber in subscribers]
    return messages


def _crowded_subject(views: Sequence[View], messages: Sequence[EncodedMessage], max_overlap: int) -> str | None:
    """Return the subject of a message of which these views have more copies; ``None`` if there is none.

    Args:
        views: The views of a subscriber.
        messages: Their messages by number. The copies that arrived as one have the same number.
        max_overlap: The largest number of copies.
    """
    fewest = max_overlap + 1 - _OTHER_COPIES
    found = _repeated(messages, fewest) if fewest > 1 else messages[-1:]
    for subject in dict.fromkeys([message.subject for message in found]):
        encoded = subject.encode()
        if sum([view.shows(encoded, subject) for view in views]) > max_overlap:
            return subject
    return None


def _repeated(messages: Sequence[EncodedMessage], times: int) -> Iterator[EncodedMessage]:
    """Yield one of each message that is repeated at least so often, which is more than once."""
    # Each run of that length has two of the positions that are looked at. A message that isn't repeated costs little.
    step = times // 2
    end = 0
    for position in range(step, len(messages), step):
        message = messages[position]
        if position < end or message.number != messages[position - step].number:
            continue
        begin = bisect_left(messages, message.number, key=_number)
        end = bisect_right(messages, message.number, lo=position, key=_number)
        if end - begin >= times:
            yield message


def _with_several_views(views: Iterable[View]) -> dict[Subscriber, list[View]]:
    """Return the subscribers of more than one of these views, with their views."""
    first: dict[Subscriber, View] = {}
    several: dict[Subscriber, list[View]] = {}
    for view in views:
        for subscriber in view.subscribers:
            other = first.setdefault(subscriber, view)
            if other is not view:
                several.setdefault(subscriber, [other]).append(view)
    return several


def _by_views(several: Mapping[Subscriber, list[View]]) -> dict[tuple[View, ...], list[Subscriber]]:
    """Group the subscribers by their views."""
    groups: dict[tuple[View, ...], list[Subscriber]] = {}
    for subscriber, views in several.items():
        groups.setdefault(tuple(views), []).append(subscriber)
    return groups


def _write(subscribers: Collection[Subscriber], messages: Sequence[EncodedMessage]) -> int:
    try:
        return _write_to_each(subscribers, messages)
    except Exception:
        # The other subscribers must get their messages all the same.
        logger.exception("Messages could not be delivered")
        _report_lost(subscribers, {message.prefix.pattern for message in messages})
        return 0


def _report_lost(subscribers: Iterable[Subscriber], patterns: Iterable[str]) -> None:
    for subscriber in tuple(subscribers):
        for pattern in patterns:
            with contextlib.suppress(Exception):  # the same fault may occur again
                subscriber.messages_lost(pattern)


def _write_to_each(subscribers: Collection[Subscriber], messages: Sequence[EncodedMessage]) -> int:
    total = len(subscribers)
    joined: dict[WireFormat, bytes] = {}
    slow: list[Subscriber] = []
    for subscriber in subscribers:
        if not subscriber.is_writable:
            slow.append(subscriber)
            continue
        data = joined.get(subscriber.wire_format)
        if data is None:
            data = joined[subscriber.wire_format] = encoding.join(messages, subscriber.wire_format)
        subscriber.write(data)
    # Last, because it may end a session, and so change the subscribers.
    for subscriber in slow:
        subscriber.skip(messages)
    return (total - len(slow)) * len(messages)
