"""A publisher of numbered messages, the same number on every subject at a time."""

import asyncio
import bisect
import contextlib
import time
from collections.abc import AsyncIterator

import nats
from nats.aio.client import Client

__all__ = ["ROLES", "Publisher"]

ROLES = ("client", "eventsource", "websocket")
"""The receivers of a page. Each has a subject of its own, by which the bridge's sessions are distinguished."""


class Publisher:
    """A publisher that numbers its messages from 1.

    Attributes:
        subjects: The first tokens of the subjects. The last token is a role.
        rate: Messages per second.
    """

    def __init__(self, client: Client, rate: float) -> None:
        self.subjects: set[str] = set()
        self.rate = rate
        self._client = client
        self._times: list[float] = []
        self._ended = False

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, url: str, rate: float) -> AsyncIterator["Publisher"]:
        """Publish until the end of the context."""
        client = await nats.connect(url)
        publisher = cls(client, rate)
        task = asyncio.create_task(publisher._run())
        try:
            yield publisher
        finally:
            # Not cancelled: before Python 3.12 a `flush` that ends at that moment drops the cancellation.
            # https://github.com/python/cpython/issues/86296
            publisher._ended = True
            await asyncio.wait({task})
            await client.close()

    @property
    def last(self) -> int:
        """The number of the last message."""
        return len(self._times)

    def last_before(self, moment: float) -> int:
        """Return the number of the last message that was published before a moment of the wall clock."""
        return bisect.bisect_left(self._times, moment)

    async def wait_for(self, count: int) -> None:
        """Wait until this number of further messages has been published."""
        end = self.last + count
        while self.last < end:  # noqa: ASYNC110 - the next message is due in a moment
            await asyncio.sleep(1 / self.rate)

    async def _run(self) -> None:
        while not self._ended:
            self._times.append(time.time())
            payload = str(self.last).encode()
            for subject in tuple(self.subjects):
                for role in ROLES:
                    await self._client.publish(f"{subject}.{role}", payload)
            await self._client.flush()
            await asyncio.sleep(1 / self.rate)
