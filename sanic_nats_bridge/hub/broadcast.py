"""The messages of one turn of the event loop, until they are written.

Nothing on the way of a message awaits: it is put into the batch, and `Batch.flush`, at the turn's end,
writes once to each subscriber.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from typing import Final

from ..metrics.counters import Tally
from ..protocol import encoding as wire
from ..protocol.encoding import Delivery
from ..protocol.subjects import is_reserved
from .fan_out import fan_out
from .interest import Interest, View

__all__ = ["Batch"]

_MAX_GATHERED_BYTES: Final = 1024 * 1024


class Batch:
    """What NATS has brought since the last flush, by the views that show it.

    With a ``flush_interval`` (seconds) it gathers for so long, but not more than 1 MiB.
    """

    def __init__(self, headers: Iterable[str] = (), flush_interval: float = 0, tally: Tally | None = None) -> None:
        self._headers = frozenset(headers)
        self._interval = flush_interval
        self._tally = tally or Tally()
        self._timer: asyncio.Handle | None = None
        self._hit: list[View] = []
        self._numbered = self._gathered = 0
        self.expires_at = math.inf
        """Unix seconds after which `on_expired` must be called before anything is written."""
        self.on_expired: Callable[[], None] | None = None

    def add(self, interest: Interest, subject: bytes, headers: bytes, payload: bytes) -> None:
        """Put a message in."""
        if not interest.views:
            return
        text = self._readable(interest, subject) if interest.has_wildcard else interest.pattern
        if not text:
            return
        shown = wire.header_fields(headers, self._headers) if headers and self._headers else b""
        self._numbered += 1
        view = interest.only_view
        if view is not None:
            # Nearly always: all see the same.
            if not view.batch:
                self._hit.append(view)
            view.batch.append(Delivery(view.source, text, shown, payload, self._numbered))
        else:
            self._share(interest, text, shown, payload)
        if self._timer is None or self._interval:
            self._flush_soon(len(payload))

    def _share(self, interest: Interest, subject: str, headers: bytes, payload: bytes) -> None:
        """Put a message into the views that show it; under one name it is one delivery."""
        first: Delivery | None = None
        for alike in interest.views.values():
            delivery: Delivery | None = None
            for view in alike.values():
                if view.leaves_out is not None and view.leaves_out(subject):
                    continue
                if first is None:
                    first = delivery = Delivery(view.source, subject, headers, payload, self._numbered)
                elif delivery is None:
                    delivery = first.under(view.source)
                if not view.batch:
                    self._hit.append(view)
                view.batch.append(delivery or first)

    def _readable(self, interest: Interest, subject: bytes) -> str:
        """The subject of a message that came by a wildcard; empty where that does not reach it."""
        try:
            text = subject.decode()
        except UnicodeDecodeError:
            self._tally.lost["unreadable_subject"] += 1
            return ""
        return "" if interest.shuns_reserved and is_reserved(text) else text

    def flush(self) -> None:
        """Write: once to each subscriber, the same bytes to all that get the same messages."""
        if not self._hit:
            return
        if self.expires_at <= time.time() and self.on_expired is not None:
            self.on_expired()
        hit, self._hit = self._hit, []
        self._tally.messages += self._numbered
        self._numbered = self._gathered = 0
        self._tally.deliveries += fan_out({view: view.take_batch() for view in hit})

    def close(self) -> None:
        """Flush no more by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _flush_soon(self, size: int) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            if self._interval:
                self._timer = loop.call_later(self._interval, self._flush_in_time)
            else:
                self._timer = loop.call_soon(self._flush_in_time)
        self._gathered += size
        if self._interval and self._gathered > _MAX_GATHERED_BYTES:
            self.flush()

    def _flush_in_time(self) -> None:
        self._timer = None
        self.flush()
