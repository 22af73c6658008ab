"""What one turn of the event loop has brought, to all who follow it: one write for each."""

import contextlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from ..protocol import encoding as wire
from ..protocol.encoding import Delivery, Form
from .interest import Subscriber, View

__all__ = ["fan_out"]

logger = logging.getLogger("sanic.root.nats_bridge")

_number: Final = attrgetter("number")


def fan_out(batches: Mapping[View, Sequence[Delivery]]) -> int:
    """Write once to each subscriber, in the order of the numbers; the same bytes to all that get the same.

    Returns how many messages were handed over, counted for each subscriber.
    """
    handed_over = 0
    several = _following_several(batches) if len(batches) > 1 else {}
    for view, batch in batches.items():
        followers: Collection[Subscriber] = view.subscribers
        if several:
            followers = [each for each in followers if each not in several]
        handed_over += _write(followers, batch)
    for followed, subscribers in _by_followed(several).items():
        merged = [delivery for view in followed for delivery in batches[view]]
        merged.sort(key=_number)
        handed_over += _write(subscribers, merged)
    return handed_over


def _following_several(hit: Iterable[View]) -> dict[Subscriber, list[View]]:
    """Which of these views a subscriber follows, for all that follow more than one."""
    first: dict[Subscriber, View] = {}
    several: dict[Subscriber, list[View]] = {}
    for view in hit:
        for subscriber in view.subscribers:
            other = first.setdefault(subscriber, view)
            if other is not view:
                several.setdefault(subscriber, [other]).append(view)
    return several


def _by_followed(several: Mapping[Subscriber, list[View]]) -> dict[tuple[View, ...], list[Subscriber]]:
    """Subscribers by which views they follow."""
    groups: dict[tuple[View, ...], list[Subscriber]] = {}
    for subscriber, views in several.items():
        groups.setdefault(tuple(views), []).append(subscriber)
    return groups


def _write(subscribers: Collection[Subscriber], deliveries: Sequence[Delivery]) -> int:
    try:
        return _write_to_each(subscribers, deliveries)
    except Exception:
        # Others get the same batch, and theirs must leave.
        logger.exception("Messages could not be delivered")
        _tell_missed(subscribers, {delivery.source.pattern for delivery in deliveries})
        return 0


def _tell_missed(subscribers: Iterable[Subscriber], patterns: Iterable[str]) -> None:
    for subscriber in tuple(subscribers):
        for pattern in patterns:
            with contextlib.suppress(Exception):  # what has failed before may fail again
                subscriber.missed(pattern)


def _write_to_each(subscribers: Collection[Subscriber], deliveries: Sequence[Delivery]) -> int:
    followers = len(subscribers)
    joined: dict[Form, bytes] = {}
    slow: list[Subscriber] = []
    for subscriber in subscribers:
        if not subscriber.keeps_up:
            slow.append(subscriber)
            continue
        data = joined.get(subscriber.form)
        if data is None:
            data = joined[subscriber.form] = wire.join(deliveries, subscriber.form)
        subscriber.write(data)
    # Last, for it may end a session.
    for subscriber in slow:
        subscriber.leave_out(deliveries)
    return (followers - len(slow)) * len(deliveries)
