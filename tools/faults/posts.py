"""Event streams that change their subscriptions by POST."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiohttp

from .clients import EventClient
from .workload import until

__all__ = ["PostingClient", "describe_posts"]

_TIMEOUT_SECONDS = 60.0
_PAUSE_SECONDS = (0.2, 0.6)
_RETRY_SECONDS = 0.1
_NO_REPLY: Mapping[str, Any] = {}
_DONE = {"subscribe": (200,), "unsubscribe": (200, 409)}
"""Statuses of success. 409 means that the command succeeded before, but its answer was lost."""


class PostingClient(EventClient):
    """A client that continuously unsubscribes and subscribes by POST.

    Each POST opens a connection of its own, so that it may reach any worker.

    Attributes:
        changing: The patterns that it unsubscribes and subscribes.
        statuses: The number of POSTs by HTTP status; 0 for those without an answer.
        failed: The number of POSTs that did not succeed.
        relayed: The number of answers from workers that don't hold the session.
        failed_commands: Descriptions of commands that failed although the stream was open.
    """

    def __init__(
        self, name: str, patterns: Sequence[str], profile: str, *, changing: Sequence[str], addresses: Sequence[str]
    ) -> None:
        super().__init__(name, patterns, profile)
        self.changing = tuple(changing)
        self.statuses: Counter[int] = Counter()
        self.relayed = 0
        self.failed = 0
        self._succeeded = 0
        self.failed_commands: list[str] = []
        self._addresses = addresses
        self._posting: asyncio.Task[None] | None = None

    async def connect(self, address: str) -> None:
        """Connect, and begin to subscribe and unsubscribe."""
        await super().connect(address)
        self._posting = asyncio.create_task(self._churn())

    async def settle(self) -> None:
        """Stop changing subscriptions, with all patterns subscribed."""
        await super().settle()
        if self._posting is not None:
            await self._posting
            self.patterns += self.changing

    async def close(self) -> None:
        """End the session."""
        if self._posting is not None:
            self._posting.cancel()
            await asyncio.wait({self._posting})
        await super().close()

    async def wait_for_success(self) -> None:
        """Wait until commands that are sent from now on have succeeded, one of each kind."""
        # The first one may have been sent before.
        enough = self._succeeded + 3
        await until(lambda: self._succeeded >= enough, f"POSTs of {self.log.client} succeed")

    async def _churn(self) -> None:
        await self._execute("subscribe")
        while self.connected and not self._settling:
            await asyncio.sleep(random.uniform(*_PAUSE_SECONDS))
            await self._execute("unsubscribe")
            await self._execute("subscribe")

    async def _execute(self, action: str) -> None:
        """Send a command repeatedly until it succeeds or the stream ends."""
        command = {"action": action, "subjects": list(self.changing)}
        self._record(time.monotonic(), {"type": "sent", **command})
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while self.connected:
            status, reply = 0, _NO_REPLY
            with contextlib.suppress(aiohttp.ClientError, OSError):
                status, reply = await self._post(command)
            self.statuses[status] += 1
            if status in _DONE[action]:
                answer = {"type": "answer", "success": True, "active": reply.get("active"), **command}
                self._succeeded += 1
                return self._record(time.monotonic(), answer)
            self.failed += 1
            if time.monotonic() > deadline:
                return self.failed_commands.append(
                    f"{self.log.client}: {action} failed for {_TIMEOUT_SECONDS:g} s, last with status {status}"
                )
            await asyncio.sleep(_RETRY_SECONDS)
        return None

    async def _post(self, command: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
        url = f"http://{random.choice(self._addresses)}/nats/{command['action']}"
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as http,
            http.post(url, params=self.query, json={"session": self.session, **command}) as response,
        ):
            self.relayed += response.headers["x-worker"] != self.worker
            return response.status, await response.json()


def describe_posts(clients: Iterable[PostingClient]) -> str:
    """Return a remark on the numbers of POSTs, by their HTTP status."""
    clients = list(clients)
    statuses = sum((client.statuses for client in clients), Counter[int]())
    relayed = sum(client.relayed for client in clients)
    return f"{statuses.total()} POSTs, {relayed} of them to workers that don't hold the session, answered " + ", ".join(
        f"{status or 'not at all'}: {count}" for status, count in sorted(statuses.items())
    )
