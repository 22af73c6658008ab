"""The limit on the requests of one client that may become sessions or commands.

A request is counted by the client's address before the app is asked for permissions. If the app then names an identity,
the request is counted by that instead, so that the users behind one address don't share its limit. A request over the
limit of its identity stays counted by the address too. Otherwise the app could be asked any number of times.
"""

import asyncio

from ..errors import RateLimitExceeded
from ..settings import Settings
from ..token_bucket import ClientBuckets

__all__ = ["RequestLimiter"]


class RequestLimiter:
    """The settings ``request_rate`` and ``request_burst``, applied to each client."""

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.request_rate
        self._buckets = ClientBuckets(settings.request_rate, settings.request_burst)

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
            self._buckets.refund(f"address {address}")

    def _spend(self, client: str) -> None:
        wait = self._buckets.spend(client, asyncio.get_running_loop().time())
        if wait:
            message = f"At most {self._rate:g} requests per second (request_rate); try again later"
            raise RateLimitExceeded(message, retry_after=wait)
