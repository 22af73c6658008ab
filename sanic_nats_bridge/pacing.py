"""How fast what clients ask for reaches NATS."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from .interest import Interest
from .token_bucket import TokenBucket

__all__ = ["Pacing"]

_BURST_SECONDS: Final = 0.1
_REST_SECONDS: Final = 0.01


class Pacing:
    """Lets at most ``rate`` interests a second be brought to NATS, which is what ``act`` does.

    ``act`` returns whether NATS had to hear of it. Those who wait are served in turn, so that one who asks
    for much delays the others by little.
    """

    def __init__(self, rate: float, act: Callable[[Interest], bool]) -> None:
        self._rate = rate
        self._act = act
        self._bucket: TokenBucket | None = None
        self._waiting: dict[object, deque[Interest]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def bring(self, interest: Interest, owner: object) -> None:
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
            if self._act(self._next()):
                self._bucket.take(loop.time())

    def _next(self) -> Interest:
        owner, interests = next(iter(self._waiting.items()))
        interest = interests.popleft()
        # To the end of the row, where anything is left.
        del self._waiting[owner]
        if interests:
            self._waiting[owner] = interests
        return interest
