"""The writes of a flush. If they are many, each turn of the event loop has some of them.

Commands, heartbeats, and later flushes for other subscribers are processed in between. A subscriber that waits for its
messages gets those of a later flush after them, and so any other frame (`FanOut.catch_up`).
"""

import contextlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import attrgetter

from ..log_limits import limited_logger
from ..protocol import encoding
from ..protocol.encoding import EncodedMessage, WireFormat
from .interest import View
from .interfaces import Subscriber
from .queue_groups import MAX_COPIES
from .skipped import SkippedMessages

__all__ = ["FanOut"]

logger = limited_logger()

_COST_PER_TURN = 2000
"""The largest cost of the writes in one turn, which may be exceeded by that of one write.

Each write costs 1, and 1 more for each 4 KiB; messages of several views cost 1 for each 32.
"""
_SECONDS_PER_TURN = 0.01
"""The time after which a turn ends before that. A write to a client that reads slowly may take many times as long."""
_COST_BETWEEN_LOOKS = 200
"""The cost of the writes between two looks at the time."""
_RESERVE = 500
"""The additional cost of writes to few subscribers in the first turn, so that they don't wait for the others."""
_BYTES_OF_ONE_COST = 12
"""4 KiB as a power of two."""
_OVERHEAD_BYTES = 128
"""The approximate size of an encoded message beside its payload."""
_FEW = 16
"""The number of subscribers up to which the sizes of messages aren't looked at."""
_FEW_MESSAGES = 32
"""The number of messages that is taken for 4 KiB then."""
_SKIPPED_FOR_ONE_COST = 8
"""The number of messages that take as long as one write if a slow consumer skips them."""
_MAX_PLANNED = 20_000
"""The largest number of subscriptions for which the subscribers of several views are found at once."""
_SEEN_PER_TURN = 10_000
_OTHER_COPIES = MAX_COPIES - 1
"""The copies of a message that may arrive beside the one for a queue group."""
_number = attrgetter("number")
_is_writable = attrgetter("is_writable")
Views = tuple[View, ...]


class FanOut:
    """The messages of one flush, and the subscribers to which they aren't written yet.

    Each method returns the number of deliveries that it has made: a message to ten subscribers counts ten times.

    Args:
        max_overlap: The largest number of copies of one message for one subscriber.
    """

    def __init__(self, max_overlap: int = 16) -> None:
        self.unfinished = False
        """True while some subscribers wait for their messages."""
        self.crowded: list[tuple[Subscriber, str]] = []
        """The subscribers that would get more copies of a message than they may, and the subject of such a message.

        `release` is due for each. Nothing is written to them before."""
        self._max_overlap = max_overlap
        self._counts_copies = False
        self._budget = 0
        self._batches: Mapping[View, Sequence[EncodedMessage]] = {}
        self._waiting: list[tuple[list[Subscriber], Views]] = []
        """Subscribers that wait for their turn, and their views."""
        self._views_of: dict[Subscriber, Views] | None = None
        """The views of each subscriber that still waits, if one of them had to be found."""
        self._crowd: _Crowd | None = None
        """The subscribers whose views aren't known yet."""
        self._held: dict[Subscriber, Views] = {}
        """The views of the subscribers in `crowded`."""
        self._merged_views: Views = ()
        self._merged: Sequence[EncodedMessage] = ()
        """The messages of these views, in order."""
        self._joined: dict[WireFormat, bytes] = {}
        """The bytes of these messages in each wire format that was needed so far."""
        self._skipped = SkippedMessages(())
        """The same messages for slow consumers."""

    def begin(
        self,
        batches: Mapping[View, Sequence[EncodedMessage]],
        counts_copies: bool = False,
        older: Sequence["FanOut"] = (),
    ) -> int:
        """Write the first part of the batches of all views. What was begun before must be finished.

        A subscriber of several views gets one write with their messages merged, in the order of their numbers.

        Args:
            batches: The messages by views.
            counts_copies: Whether some subscriber may get too many copies of a message.
            older: The unfinished flushes before. Subscribers that wait for messages of these wait for all.
        """
        view, batch = next(iter(batches.items()))
        is_alone = len(batches) == 1 and not older
        count = len(view.subscribers)
        if is_alone and count * _cost(batch, count) <= _COST_PER_TURN and _are_quick(view.subscribers, batch):
            return _write(view.subscribers, batch, {})
        self._batches = batches
        self._counts_copies = counts_copies
        self._budget = _COST_PER_TURN
        deliveries = 0
        if is_alone:
            deliveries = self._write_some(view.subscribers, (view,))
        elif sum([len(view.subscribers) for view in batches]) > _MAX_PLANNED:
            self._crowd = _Crowd(batches)
            deliveries = 0 if older else self._write_crowd(self._crowd)
        else:
            deliveries = self._write_after(older) if older else self._write_views()
        self._end_turn()
        return deliveries

    def go_on(self) -> int:
        """Write the next part."""
        self._budget = _COST_PER_TURN
        deliveries = 0
        if self._waiting:
            deliveries = self._write_waiting()
        elif self._crowd is not None:
            deliveries = self._write_crowd(self._crowd)
        self._end_turn()
        return deliveries

    def catch_up(self, subscriber: Subscriber) -> int:
        """Write all messages of one subscriber, if it waits for some."""
        views = self._take(subscriber)
        return _write([subscriber], self._messages(views), self._joined, self._skipped) if views else 0

    def drop(self, subscriber: Subscriber, views: Collection[View]) -> None:
        """Write no more messages of these views to a subscriber."""
        rest = tuple([view for view in self._take(subscriber) if view not in views])
        if rest:
            self._waiting.append(([subscriber], rest))
            if self._views_of is not None:
                self._views_of[subscriber] = rest

    def release(self, subscriber: Subscriber) -> int:
        """Write to a subscriber in `crowded` from which `drop` has not taken views meanwhile."""
        views = self._held.pop(subscriber, ())
        return _write([subscriber], self._messages(views), self._joined, self._skipped) if views else 0

    def _end_turn(self) -> None:
        self.unfinished = bool(self._waiting) or self._crowd is not None or bool(self.crowded)
        if not self._waiting:
            self._views_of = None
        if not self.unfinished:
            self._batches = {}
            self._merged_views, self._merged, self._joined, self._skipped = (), (), {}, SkippedMessages(())

    def awaits(self, subscriber: Subscriber) -> bool:
        """Return whether a subscriber waits for its messages."""
        if self._waiting and subscriber in self._index():
            return True
        return subscriber in self._held or (self._crowd is not None and self._crowd.has(subscriber))

    def _take(self, subscriber: Subscriber) -> Views:
        """Remove a subscriber from those that wait; return its views."""
        if self._waiting and (views := self._index().pop(subscriber, ())):
            return views
        if views := self._held.pop(subscriber, ()):
            return views
        return () if self._crowd is None else self._crowd.take(subscriber)

    def _index(self) -> dict[Subscriber, Views]:
        if self._views_of is None:
            self._views_of = {each: views for subscribers, views in self._waiting for each in subscribers}
        return self._views_of

    def _write_after(self, older: Sequence["FanOut"]) -> int:
        """Write to subscribers that don't wait for messages of older flushes."""
        deliveries = 0
        later: list[tuple[list[Subscriber], Views]] = []
        several = _with_several_views(self._batches)
        groups: list[tuple[Views, Collection[Subscriber]]] = [((view,), view.subscribers) for view in self._batches]
        for views, subscribers in [*groups, *_by_views(several.items()).items()]:
            waiting: list[Subscriber] = []
            ready: list[Subscriber] = []
            for each in subscribers:
                if len(views) > 1 or each not in several:
                    (waiting if any(flush.awaits(each) for flush in older) else ready).append(each)
            if waiting:
                later.append((waiting, views))
            if ready:
                deliveries += self._write_some(ready, views)
        self._waiting[:0] = later
        return deliveries

    def _write_views(self) -> int:
        deliveries = 0
        several = _with_several_views(self._batches)
        budget = self._budget
        for view, batch in self._batches.items():
            subscribers: Collection[Subscriber] = view.subscribers
            if several:
                subscribers = [each for each in subscribers if each not in several]
            count = len(subscribers)
            if count <= _FEW and count <= budget + _RESERVE and len(batch) < _SKIPPED_FOR_ONE_COST:
                # No further call, because there may be very many views with one subscriber each.
                budget -= count
                deliveries += _write(subscribers, batch, {}) if count else 0
            else:
                self._budget = budget
                deliveries += self._write_some(subscribers, (view,))
                budget = self._budget
        self._budget = budget
        for views, subscribers in _by_views(several.items()).items():
            reserve = _RESERVE if len(subscribers) <= _FEW else 0
            self._budget += reserve
            deliveries += self._write_some(subscribers, views)
            self._budget -= reserve
        return deliveries

    def _write_crowd(self, crowd: "_Crowd") -> int:
        chosen = crowd.take_some(_SEEN_PER_TURN, _COST_PER_TURN)
        if crowd.is_empty:
            self._crowd = None
        # All of them wait before the first write, which may end a session, and so look for those who wait.
        self._waiting += [(subscribers, views) for views, subscribers in _by_views(chosen).items()]
        return self._write_waiting()

    def _write_some(self, subscribers: Collection[Subscriber], views: Views) -> int:
        """Write to as many subscribers of the same views as the budget allows. The others wait."""
        if self._budget > 0:
            messages = self._messages(views)
            cost = len(subscribers) * _cost(messages, len(subscribers))
            if cost <= self._budget and _are_quick(subscribers, messages):
                self._budget -= cost
                return self._write(subscribers, views, messages)
        self._waiting.append((list(subscribers), views))
        return self._write_waiting()

    def _write_waiting(self) -> int:
        deliveries = 0
        ends_at = time.perf_counter() + _SECONDS_PER_TURN
        while self._waiting and self._budget > 0:
            subscribers, views = self._waiting[-1]
            messages = self._messages(views)
            part = self._take_affordable(subscribers, messages)
            if not subscribers:
                self._waiting.pop()
            if self._views_of is not None:
                part = [each for each in part if self._views_of.pop(each, None)]
            deliveries += self._write(part, views, messages)
            if time.perf_counter() > ends_at:
                self._budget = 0
        return deliveries

    def _take_affordable(self, subscribers: list[Subscriber], messages: Sequence[EncodedMessage]) -> list[Subscriber]:
        """Remove and return as many subscribers as a part of the budget allows, and one at least."""
        budget = min(self._budget, _COST_BETWEEN_LOOKS)
        cost = _cost(messages, len(subscribers))
        count = max(budget // cost, 1)
        part = subscribers[-count:]
        if not _are_quick(part, messages):
            slow = len(part) - sum(map(_is_writable, part))
            cost += len(self._skipped.newest) // _SKIPPED_FOR_ONE_COST * slow // len(part)
            count = max(budget // cost, 1)
            part = part[-count:]
        del subscribers[-count:]
        self._budget -= cost * len(part)
        return part

    def _write(self, subscribers: Collection[Subscriber], views: Views, messages: Sequence[EncodedMessage]) -> int:
        if self._counts_copies and len(views) > self._max_overlap - _OTHER_COPIES:
            subject = _crowded_subject(views, messages, self._max_overlap)
            if subject is not None:
                self._held.update(dict.fromkeys(subscribers, views))
                self.crowded += [(subscriber, subject) for subscriber in subscribers]
                return 0
        return _write(subscribers, messages, self._joined, self._skipped)

    def _messages(self, views: Views) -> Sequence[EncodedMessage]:
        """Return the messages of all these views, in order. They cost something if the views are several."""
        if views != self._merged_views:
            if len(views) == 1:
                self._merged = self._batches[views[0]]
            else:
                merged = [message for view in views for message in self._batches[view]]
                merged.sort(key=_number)
                self._budget -= len(merged) // _FEW_MESSAGES
                self._merged = merged
            self._merged_views, self._joined, self._skipped = views, {}, SkippedMessages(self._merged)
        return self._merged


def _are_quick(subscribers: Collection[Subscriber], messages: Sequence[EncodedMessage]) -> bool:
    """Return False if messages must be kept for a slow consumer, which takes longer than to write them."""
    return len(messages) < _SKIPPED_FOR_ONE_COST or all(map(_is_writable, subscribers))


def _cost(messages: Sequence[EncodedMessage], subscribers: int) -> int:
    """Return the cost of a write of these messages to each of so many subscribers."""
    if subscribers <= _FEW:
        return 1 + len(messages) // _FEW_MESSAGES
    size = sum([len(message.payload) for message in messages]) + _OVERHEAD_BYTES * len(messages)
    return 1 + (size >> _BYTES_OF_ONE_COST)


class _Crowd:
    """The subscribers of so many views that it takes several turns to find which of them follow which views.

    Args:
        batches: The messages by views.
    """

    def __init__(self, batches: Mapping[View, Sequence[EncodedMessage]]) -> None:
        self.batches = batches
        # Copies, because subscribers come and go between the turns.
        self._subscribers = {view: view.subscribers.copy() for view in batches}
        self._positions = {view: position for position, view in enumerate(batches)}
        self._rest = chain.from_iterable(self._subscribers.values())
        self._taken: set[Subscriber] = set()
        self.is_empty = False

    def has(self, subscriber: Subscriber) -> bool:
        """Return whether a subscriber wasn't removed yet."""
        if subscriber in self._taken:
            return False
        return any(subscriber in self._subscribers.get(view, ()) for view in subscriber.views)

    def take(self, subscriber: Subscriber) -> Views:
        """Remove a subscriber; return its views, or none if it was removed before."""
        if subscriber in self._taken:
            return ()
        self._taken.add(subscriber)
        found = [view for view in subscriber.views if subscriber in self._subscribers.get(view, ())]
        # In one order, so that those of the same views are found to be alike.
        found.sort(key=self._positions.__getitem__)
        return tuple(found)

    def take_some(self, most_seen: int, most: int) -> list[tuple[Subscriber, Views]]:
        """Remove some subscribers, and return each with its views."""
        chosen: list[tuple[Subscriber, Views]] = []
        seen = 0
        for subscriber in self._rest:
            seen += 1
            if subscriber not in self._taken:
                seen += len(subscriber.views)
                if views := self.take(subscriber):
                    chosen.append((subscriber, views))
            if seen >= most_seen or len(chosen) >= most:
                return chosen
        self.is_empty = True
        return chosen


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


def _by_views(several: Iterable[tuple[Subscriber, Sequence[View]]]) -> dict[Views, list[Subscriber]]:
    """Group the subscribers by their views."""
    groups: dict[Views, list[Subscriber]] = {}
    for subscriber, views in several:
        groups.setdefault(tuple(views), []).append(subscriber)
    return groups


def _write(
    subscribers: Collection[Subscriber],
    messages: Sequence[EncodedMessage],
    joined: dict[WireFormat, bytes],
    skipped: SkippedMessages | None = None,
) -> int:
    """Write the messages to each subscriber; return the number of deliveries.

    Args:
        subscribers: The subscribers.
        messages: Their messages.
        joined: The bytes of the messages in each wire format that was needed so far.
        skipped: The messages for slow consumers, if they were needed so far.
    """
    try:
        return _write_to_each(subscribers, messages, joined, skipped)
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


def _write_to_each(
    subscribers: Collection[Subscriber],
    messages: Sequence[EncodedMessage],
    joined: dict[WireFormat, bytes],
    skipped: SkippedMessages | None,
) -> int:
    total = len(subscribers)
    slow: list[Subscriber] = []
    for subscriber in subscribers:
        if not subscriber.is_writable:
            slow.append(subscriber)
            continue
        data = joined.get(subscriber.wire_format)
        if data is None:
            data = joined[subscriber.wire_format] = encoding.join(messages, subscriber.wire_format)
        subscriber.write(data)
    if slow:
        skipped = skipped or SkippedMessages(messages)
        # Last, because it may end a session, and so change the subscribers.
        for subscriber in slow:
            subscriber.skip(skipped)
    return (total - len(slow)) * len(messages)
