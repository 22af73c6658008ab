"""Where a fault is done: NATS, a way to it, a bridge, clients and publishers; and what is seen of it all."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from benchmarks.processes import Server
from sanic_nats_bridge.testing import NatsServer

from .checker import Publication
from .clients import Client, EventClient, RestlessClient, WebSocketClient
from .proxy import Proxy
from .publisher import Publisher
from .views import VIEWS

__all__ = ["FOLLOWED", "NotDoneError", "Stage", "until"]

_SUBJECTS: Final = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport", "secret.plans")
_AUDIENCE: Final[Sequence[tuple[type[Client], str, tuple[str, ...]]]] = (
    (WebSocketClient, "open", ("orders.>",)),
    (WebSocketClient, "eu", ("orders.eu.1",)),
    (WebSocketClient, "not-us", ("orders.>", "orders.eu.*", "news.sport")),
    (WebSocketClient, "open", ("news.*", "orders.us.1")),
    (WebSocketClient, "own", ("mine.>", "mine.2")),
    (EventClient, "own", ("mine.*",)),
    (EventClient, "not-us", ("orders.*.1", "orders.>")),
    (EventClient, "open", ("news.sport",)),
)
FOLLOWED: Final = sorted({VIEWS[view].view.real(pattern) for _, view, patterns in _AUDIENCE for pattern in patterns})
"""What NATS is asked for when the audience is there."""

_COPIES: Final = 2
_NOTICES: Final = ("disconnected", "gap", "unsubscribed", "nats.refused")
_PATIENCE_SECONDS: Final = 30.0
_SMALL_SECONDS: Final = 0.3

C = TypeVar("C", bound=Client)


class NotDoneError(RuntimeError):
    """A fault was not done as it should, and nothing is known of what would have come of it."""


class Stage:
    """What a fault is done to; the code of a fault calls what it needs.

    Attributes:
        audience: Clients that have nothing to do with the fault.
        others: Those that have, and those that come and go.
        noticed: Seconds from each strike until the first client was told of it, where one was.
        back: Seconds from each healing until every client of the audience had a message again.
    """

    def __init__(
        self,
        servers: list[NatsServer],
        proxy: Proxy,
        bridge: Server,
        http: aiohttp.ClientSession,
        *,
        calm: bool,
        small: bool,
        seed: int,
    ) -> None:
        self.servers: Final = servers
        self.nats: Final = servers[0]
        self.proxy: Final = proxy
        self.bridge: Final = bridge
        self.address: Final = f"127.0.0.1:{bridge.port}"
        self.small: Final = small
        self.seed: Final = seed
        self.audience: list[Client] = []
        self.others: list[Client] = []
        self.publishers: list[Publisher] = []
        self.noticed: list[float] = []
        self.back: list[float] = []
        self._http: Final = http
        self._calm: Final = calm

    @property
    def clients(self) -> list[Client]:
        """All of them."""
        return self.audience + self.others

    @property
    def publications(self) -> list[Publication]:
        """All that was published."""
        return [publication for publisher in self.publishers for publication in publisher.publications]

    async def begin(self) -> None:
        """Have the audience follow, and messages come."""
        for copy in range(_COPIES):
            for number, (kind, view, patterns) in enumerate(_AUDIENCE):
                self.audience.append(kind(f"{kind.__name__}-{number}-{copy}", patterns, view))
        await asyncio.gather(*(client.join(self.address) for client in self.audience))
        if not self._calm:
            await self.join(RestlessClient("restless", ("orders.>", "orders.us.*")))
        for name in "ab":
            self.publish_by(Publisher(name, self.servers[-1], _SUBJECTS))

    def publish_by(self, publisher: Publisher) -> None:
        """Have one more publisher."""
        self.publishers.append(publisher)
        publisher.start()

    async def join(self, client: C) -> C:
        """Have one more client."""
        self.others.append(client)
        await client.join(self.address)
        return client

    async def ask_for_what_is_forbidden(self) -> None:
        """Have the audience ask for what it may not follow; the checker sees the replies."""
        for client in self.audience:
            if isinstance(client, WebSocketClient):
                for pattern in client.access.closed:
                    await client.ask("subscribe", (*client.patterns, pattern))

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """The fault is there while this context lasts; returns when every client gets messages again."""
        struck = time.monotonic()
        yield
        healed = time.monotonic()
        self.back.append(await self.all_get_messages(healed) - healed)
        seen = [at for client in self.clients if (at := client.first(struck, *_NOTICES)) is not None]
        if seen:
            self.noticed.append(min(seen) - struck)

    async def hold(self, seconds: float) -> None:
        """Let the fault stand for so long."""
        await asyncio.sleep(min(seconds, _SMALL_SECONDS) if self.small else seconds)

    async def all_get_messages(self, since: float) -> float:
        """Wait until each client of the audience has a message that was published after the moment; when the last had.

        Raises:
            TimeoutError: Some have not.
        """
        moments: dict[Client, float] = {}

        def all_have() -> bool:
            keys = [each.key for publisher in self.publishers for each in publisher.published_since(since)]
            for client in self.audience:
                if client not in moments and (got := [client.at[key] for key in keys if key in client.at]):
                    moments[client] = min(got)
            return len(moments) == len(self.audience)

        await until(all_have, "every client gets messages")
        return max(moments.values())

    async def finish(self) -> None:
        """Publish a last message on each subject, and wait until it has come to all, or too long."""
        await asyncio.gather(*(client.settle() for client in self.others if isinstance(client, RestlessClient)))
        await asyncio.gather(*(publisher.finish() for publisher in self.publishers))
        last = [publication for publisher in self.publishers for publication in publisher.closing]
        for client in self.clients:
            client.expect(last)
        with contextlib.suppress(TimeoutError):
            await until(lambda: all(client.has_all for client in self.clients if client.connected), "the last messages")
        for client in self.clients:
            client.log.to_the_end = client.connected

    # What the bridge is asked, and what is seen of its process

    async def ask_bridge(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Ask the app that has the bridge in it; the status, and the body of the answer."""
        method = "GET" if body is None else "POST"
        url = f"http://{self.address}{path}"
        async with self._http.request(method, url, data=body) as response:
            return response.status, await response.text()

    async def facts(self) -> dict[str, Any]:
        """What the bridge's process holds: tasks, open files, subscriptions of NATS."""
        _, answer = await self.ask_bridge("/facts")
        found: dict[str, Any] = json.loads(answer)
        carrier = next((each for each in self.servers if each.port == found["nats"]), self.nats)
        return found | {"files": self.open_files(), "subscriptions": carrier.subscriptions()}

    def open_files(self) -> int:
        """How many the bridge's process has."""
        return sum(1 for _ in Path(f"/proc/{self.bridge.pid}/fd").iterdir())

    def require(self, fact: bool, what: str) -> None:
        """Go on only if this is so.

        Raises:
            NotDoneError: It is not: the fault was not done as it should.
        """
        if not fact:
            raise NotDoneError(what)

    async def carrier(self) -> NatsServer:
        """The NATS server to which the bridge is connected."""
        port = (await self.facts())["nats"]
        return next(each for each in self.servers if each.port == port)


async def until(fact: Callable[[], bool], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
    """Wait until the fact holds.

    Raises:
        TimeoutError: It does not.
    """
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(0.01)
