"""Where a fault is done: NATS, a way to it, a bridge, clients and publishers; and what is seen of it all."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import Server
from ..harness.tcp_proxy import Proxy
from .clients import Client, EventClient, RestlessClient, WebSocketClient
from .permission_profiles import VIEWS
from .publisher import Publisher
from .workload import Scene

__all__ = ["FOLLOWED", "Stage"]

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

C = TypeVar("C", bound=Client)


class Stage(Scene):
    """What a fault is done to; the code of a fault calls what it needs."""

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
        super().__init__(small=small)
        self.seed: Final = seed
        self._http: Final = http
        self._calm: Final = calm

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

    async def carrier(self) -> NatsServer:
        """The NATS server to which the bridge is connected."""
        port = (await self.facts())["nats"]
        return next(each for each in self.servers if each.port == port)
