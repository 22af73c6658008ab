"""The limit on the rate of SUB and UNSUB that clients cause."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from ..token_bucket import TokenBucket
from .interest import Interest

__all__ = ["SubscribeThrottle"]

_BURST_SECONDS = 0.1
_MIN_WAIT_SECONDS = 0.01


class SubscribeThrottle:
    """A queue that synchronizes at most ``rate`` interests per second with NATS.

    Owners are served in turn, so that an owner of many interests delays the others little. Interests without an
    owner, which no session uses any more, get every other turn. Otherwise more of them would stay subscribed in NATS
    the more owners there are.

    Args:
        rate: Interests per second.
        sync: Sends the SUB or UNSUB that an interest needs; returns whether it needed one.
    """

    def __init__(self, rate: float, sync: Callable[[Interest], bool]) -> None:
        self._rate = rate
        self._sync = sync
        self._bucket: TokenBucket | None = None
        # A plain dict takes long to find its first key if many before it were removed.
        self._waiting: OrderedDict[object, deque[Interest]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._unowned_next = False

    def submit(self, interest: Interest, owner: object) -> None:
        """Synchronize the interest now, or when it is its owner's turn."""
        self._waiting.setdefault(owner, deque()).append(interest)
        if self._timer is None:
            self._serve()

    def clear(self) -> None:
        """Drop all waiting interests."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _serve(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._bucket is None:
            self._bucket = TokenBucket(self._rate, max(1.0, self._rate * _BURST_SECONDS), loop.time())
        while self._waiting:
            wait = self._bucket.wait(loop.time())
            if wait:
                self._timer = loop.call_later(max(wait, _MIN_WAIT_SECONDS), self._serve)
                return
            owner = None if self._unowned_next and None in self._waiting else next(iter(self._waiting))
            if self._sync(self._take_next(owner)):
                self._bucket.take(loop.time())
                self._unowned_next = owner is not None

    def _take_next(self, owner: object) -> Interest:
        interests = self._waiting[owner]
        interest = interests.popleft()
        # The owner moves to the end of the queue if it has more interests.
        del self._waiting[owner]
        if interests:
            self._waiting[owner] = interests
        return interest
