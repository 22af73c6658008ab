"""How fast what clients ask for reaches NATS."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ..token_bucket import TokenBucket
from .interest import Interest

__all__ = ["SubscribeThrottle"]

_BURST_SECONDS: Final = 0.1
_REST_SECONDS: Final = 0.01


class SubscribeThrottle:
    """Lets at most ``rate`` interests a second be brought to NATS, which is what ``act`` does.

    ``act`` returns whether NATS had to hear of it. Those who wait are served in turn, so that one who asks
    for much delays the others by little. What has no owner, because nobody wants it any more, has every other
    turn: otherwise NATS would be left with the more of it, the more owners there are.
    """

    def __init__(self, rate: float, act: Callable[[Interest], bool]) -> None:
        self._rate = rate
        self._act = act
        self._bucket: TokenBucket | None = None
        self._waiting: dict[object, deque[Interest]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._unowned_next = False

    def submit(self, interest: Interest, owner: object) -> None:
        """Act on the interest now, or when its owner's turn has come."""
        self._waiting.setdefault(owner, deque()).append(interest)
        if self._timer is None:
            self._serve()

    def forget(self) -> None:
        """Nothing is to be brought any more."""
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
                self._timer = loop.call_later(max(wait, _REST_SECONDS), self._serve)
                return
            owner = None if self._unowned_next and None in self._waiting else next(iter(self._waiting))
            if self._act(self._take(owner)):
                self._bucket.take(loop.time())
                self._unowned_next = owner is not None

    def _take(self, owner: object) -> Interest:
        interests = self._waiting[owner]
        interest = interests.popleft()
        # To the end of the row, where anything is left.
        del self._waiting[owner]
        if interests:
            self._waiting[owner] = interests
        return interest
