"""Event streams that change by POST what they follow."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiohttp

from .clients import EventClient

__all__ = ["PostingClient"]

_PATIENCE_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = (0.2, 0.6)
_RETRY_SECONDS: Final = 0.1
_NO_REPLY: Final[Mapping[str, Any]] = {}
_DONE: Final = {"subscribe": (200,), "unsubscribe": (200, 409)}
"""409: it has been carried out before, and its answer was lost."""


class PostingClient(EventClient):
    """One that subscribes and unsubscribes by POST without end, each time to whichever worker takes the connection.

    Attributes:
        changing: The patterns of which it does so.
        statuses: How often its POSTs were answered by which HTTP status; 0 where there was no answer.
        elsewhere: How many of the answers came from a worker that does not hold the session.
        stuck: What was not carried out although the stream stood.
    """

    def __init__(
        self, name: str, patterns: Sequence[str], view: str, *, changing: Sequence[str], addresses: Sequence[str]
    ) -> None:
        super().__init__(name, patterns, view)
        self.changing = tuple(changing)
        self.statuses: Counter[int] = Counter()
        self.elsewhere = 0
        self.stuck: list[str] = []
        self._addresses = addresses
        self._posting: asyncio.Task[None] | None = None

    async def join(self, address: str) -> None:
        """Connect, and begin."""
        await super().join(address)
        self._posting = asyncio.create_task(self._change())

    async def settle(self) -> None:
        """Come to rest, with all patterns subscribed."""
        await super().settle()
        if self._posting is not None:
            await self._posting
            self.patterns += self.changing

    async def leave(self) -> None:
        """End the session."""
        if self._posting is not None:
            self._posting.cancel()
            await asyncio.wait({self._posting})
        await super().leave()

    async def _change(self) -> None:
        await self._carry_out("subscribe")
        while self.connected and not self._settling:
            await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))
            await self._carry_out("unsubscribe")
            await self._carry_out("subscribe")

    async def _carry_out(self, action: str) -> None:
        """Send the command until it has been carried out, or the stream has ended."""
        command = {"action": action, "subjects": list(self.changing)}
        self._take(time.monotonic(), {"type": "sent", **command})
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.connected:
            status, reply = 0, _NO_REPLY
            with contextlib.suppress(aiohttp.ClientError, OSError):
                status, reply = await self._post(command)
            self.statuses[status] += 1
            if status in _DONE[action]:
                answer = {"type": "answer", "success": True, "active": reply.get("active"), **command}
                return self._take(time.monotonic(), answer)
            if time.monotonic() > deadline:
                return self.stuck.append(f"{self.log.client}: {action} was answered by {status} without end")
            await asyncio.sleep(_RETRY_SECONDS)
        return None

    async def _post(self, command: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        url = f"http://{random.choice(self._addresses)}/nats/{command['action']}"
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            http.post(url, params=self.query, json={"session": self.session, **command}) as response,
        ):
            self.elsewhere += response.headers["x-worker"] != self.worker
            return response.status, await response.json()
