"""The limit on the requests of one client that may become sessions or commands.

A request is counted by the client's address before the app is asked for permissions. If the app then names an identity,
the request is counted by that instead, so that the users behind one address don't share its limit. A request over the
limit of its identity stays counted by the address too. Otherwise the app could be asked any number of times.
"""

import asyncio
from collections import OrderedDict

from ..errors import RateLimitExceeded
from ..settings import Settings
from ..token_bucket import TokenBucket

__all__ = ["RequestLimiter"]

_MAX_CLIENTS = 10_000
_FORGOTTEN_PER_REQUEST = 2


class RequestLimiter:
    """The settings ``request_rate`` and ``request_burst``, applied to each client.

    A client is forgotten once it may send a full burst again. Beyond 10,000 clients, the one that was silent for the
    longest time is forgotten.
    """

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.request_rate
        self._burst = settings.request_burst
        # A plain dict takes long to find its first key if many before it were removed.
        self._buckets: OrderedDict[str, tuple[TokenBucket, float]] = OrderedDict()
        """The bucket of each client, and the time of its last request, by which they are sorted."""

    def __len__(self) -> int:
        return len(self._buckets)

    def count(self, address: str) -> None:
        """Count a request of a client whose identity isn't known.

        Raises:
            RateLimitExceeded: The request exceeds ``request_rate``.
        """
        if self._rate:
            self._spend(f"address {address}")

    def count_identity(self, address: str, identity: str | None) -> None:
        """Count a request, which was counted by its address already, by the identity that the app has named.

        Raises:
            RateLimitExceeded: The request exceeds ``request_rate``.
        """
        if self._rate and identity is not None:
            self._spend(f"identity {identity}")
            if (counted := self._buckets.get(f"address {address}")) is not None:
                counted[0].refund()

    def _spend(self, client: str) -> None:
        now = asyncio.get_running_loop().time()
        self._forget_idle(now)
        bucket, _ = self._buckets.pop(client, (None, now))
        if bucket is None:
            bucket = TokenBucket(self._rate, self._burst, now)
            if len(self._buckets) >= _MAX_CLIENTS:
                self._buckets.popitem(last=False)
        self._buckets[client] = bucket, now
        if not bucket.spend(now):
            message = f"At most {self._rate:g} requests per second (request_rate); try again later"
            raise RateLimitExceeded(message, retry_after=bucket.wait(now))

    def _forget_idle(self, now: float) -> None:
        full_after = self._burst / self._rate
        for _ in range(min(_FORGOTTEN_PER_REQUEST, len(self._buckets))):
            client, (_, last) = next(iter(self._buckets.items()))
            if now - last < full_after:
                return
            del self._buckets[client]
