"""What a client is not given while it is over its limit, and what it is told of it."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from .wire import Delivery, Form

__all__ = ["LeftOut"]


class LeftOut:
    """The messages left out since a client went over its limit.

    With ``kept_bytes`` the newest of each subscription and subject are kept, to be delivered later, for
    as long as all of them together are no larger; the oldest give way. The others are counted.
    """

    def __init__(self, form: Form, kept_bytes: int) -> None:
        self.over: Final = asyncio.Event()
        self._form = form
        self._keeps = kept_bytes > 0
        self._room = kept_bytes
        self._kept: dict[tuple[str, str], Delivery] = {}
        self._lost: dict[str, int] = {}

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Leave these messages out."""
        for delivery in deliveries:
            if not self._keeps:
                self._count(delivery)
                continue
            key = (delivery.pattern, delivery.subject)
            self._lose(self._kept.pop(key, None))
            self._kept[key] = delivery
            self._room -= self._size(delivery)
            while self._room < 0:
                self._lose(self._kept.pop(next(iter(self._kept))))

    def take(self, pattern: str) -> int:
        """How many of a subscription that has ended were left out; there is nothing more of it here."""
        for key in [key for key in self._kept if key[0] == pattern]:
            self._lose(self._kept.pop(key))
        return self._lost.pop(pattern, 0)

    @property
    def lost(self) -> Iterable[tuple[str, int]]:
        """How many messages of which pattern the client will never get."""
        return self._lost.items()

    @property
    def kept(self) -> Iterator[Delivery]:
        """The messages that it gets after all, in the order of their arrival."""
        return iter(self._kept.values())

    def _lose(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            self._room += self._size(delivery)
            self._count(delivery)

    def _count(self, delivery: Delivery) -> None:
        self._lost[delivery.pattern] = self._lost.get(delivery.pattern, 0) + 1

    def _size(self, delivery: Delivery) -> int:
        return len(delivery.encoded(self._form))
