"""What one turn of the event loop has brought, to all who follow it: one write for each."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from . import wire
from .interest import Interest, Subscriber
from .wire import Delivery, Form

__all__ = ["fan_out"]

logger = logging.getLogger("sanic.root.nats_bridge")

_number: Final = attrgetter("number")


def fan_out(batches: Mapping[Interest, Sequence[Delivery]]) -> None:
    """Write once to each subscriber, in the order of the numbers; the same bytes to all that get the same."""
    several = _following_several(batches) if len(batches) > 1 else {}
    for interest, batch in batches.items():
        followers: Iterable[Subscriber] = interest.subscribers
        if several:
            followers = [each for each in followers if each not in several]
        _write(followers, batch)
    for followed, subscribers in _by_followed(several).items():
        merged = [delivery for interest in followed for delivery in batches[interest]]
        merged.sort(key=_number)
        _write(subscribers, merged)


def _following_several(hit: Iterable[Interest]) -> dict[Subscriber, list[Interest]]:
    """Which of these interests a subscriber follows, for all that follow more than one."""
    first: dict[Subscriber, Interest] = {}
    several: dict[Subscriber, list[Interest]] = {}
    for interest in hit:
        for subscriber in interest.subscribers:
            other = first.setdefault(subscriber, interest)
            if other is not interest:
                several.setdefault(subscriber, [other]).append(interest)
    return several


def _by_followed(several: Mapping[Subscriber, list[Interest]]) -> dict[tuple[Interest, ...], list[Subscriber]]:
    """Subscribers by which interests they follow."""
    groups: dict[tuple[Interest, ...], list[Subscriber]] = {}
    for subscriber, interests in several.items():
        groups.setdefault(tuple(interests), []).append(subscriber)
    return groups


def _write(subscribers: Iterable[Subscriber], deliveries: Sequence[Delivery]) -> None:
    try:
        _write_to_each(subscribers, deliveries)
    except Exception:
        # Others get the same batch, and theirs must leave.
        logger.exception("Messages could not be delivered")


def _write_to_each(subscribers: Iterable[Subscriber], deliveries: Sequence[Delivery]) -> None:
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
