"""The environment of a fault: NATS, a proxy to it, a bridge, clients and publishers."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import aiohttp

from sanic_nats_bridge.testing import NatsServer

from ..harness.processes import Server, open_files
from ..harness.tcp_proxy import Proxy
from .clients import ChurningClient, Client, EventClient, WebSocketClient
from .permission_profiles import PROFILES
from .publisher import Publisher
from .workload import Workload

__all__ = ["SUBSCRIBED", "Environment"]

_SUBJECTS = ("orders.eu.1", "orders.eu.2", "orders.us.1", "news.sport", "secret.plans")
_BYSTANDERS: Sequence[tuple[type[Client], str, tuple[str, ...]]] = (
    (WebSocketClient, "open", ("orders.>",)),
    (WebSocketClient, "eu", ("orders.eu.1",)),
    (WebSocketClient, "not-us", ("orders.>", "orders.eu.*", "news.sport")),
    (WebSocketClient, "open", ("news.*", "orders.us.1")),
    (WebSocketClient, "own", ("mine.>", "mine.2")),
    (EventClient, "own", ("mine.*",)),
    (EventClient, "not-us", ("orders.*.1", "orders.>")),
    (EventClient, "open", ("news.sport",)),
)
SUBSCRIBED = sorted(
    {PROFILES[profile].profile.real_name(pattern) for _, profile, patterns in _BYSTANDERS for pattern in patterns}
)
"""The bridge's subscriptions at NATS while only the bystanders are connected."""

_COPIES = 2
_CONTROL_SECONDS = 90.0
"""A control channel repeats its check after 30 s at most, which may take 5 s, and waits up to 45 s after a failure."""

C = TypeVar("C", bound=Client)


class Environment(Workload):
    """The parts on which a fault acts, and what it may do to them.

    Args:
        servers: The NATS servers, of which the first is the bridge's.
        proxy: A proxy to the first NATS server.
        bridge: The process of the bridge.
        peer: Another process of the same app, if there is one. Clients connect to the first process only.
        http: For requests to the app.
        has_name: The bridge connects to NATS by a name with several addresses.
        churn: Add a client that continuously changes its subscriptions.
        small: Keep faults very short.
        seed: The seed of random publishers.
    """

    def __init__(
        self,
        servers: list[NatsServer],
        proxy: Proxy,
        bridge: Server,
        http: aiohttp.ClientSession,
        *,
        peer: Server | None = None,
        has_name: bool = False,
        churn: bool,
        small: bool,
        seed: int,
    ) -> None:
        self.servers = servers
        self.nats = servers[0]
        self.proxy = proxy
        self.bridge = bridge
        self.peer = peer
        self.has_name = has_name
        self.address = _address(bridge)
        super().__init__(small=small)
        self.seed = seed
        self._http = http
        self._churn = churn

    async def start(self) -> None:
        """Connect the bystanders, and begin to publish."""
        clients = [
            kind(f"{kind.__name__}-{number}-{copy}", patterns, profile)
            for copy in range(_COPIES)
            for number, (kind, profile, patterns) in enumerate(_BYSTANDERS)
        ]
        self.bystanders += clients
        await asyncio.gather(*(client.connect(self.address) for client in clients))
        if self._churn:
            await self.connect(ChurningClient("churning", ("orders.>", "orders.us.*")))
        for name in "ab":
            self.add_publisher(Publisher(name, self.servers[-1], _SUBJECTS))

    async def connect(self, client: C) -> C:
        """Connect another client."""
        self.others.append(client)
        await client.connect(self.address)
        return client

    async def request_forbidden(self) -> None:
        """Have the bystanders subscribe to forbidden patterns. The checker sees the replies."""
        for client in self.bystanders:
            if isinstance(client, WebSocketClient):
                for pattern in client.access.forbidden:
                    await client.send_command("subscribe", (*client.patterns, pattern))

    # Requests to the app, and the state of its process

    async def request(self, path: str, body: bytes | None = None) -> tuple[int, str]:
        """Send a request to the app of the bridge, and return the status and the body of the response."""
        return await self._request(self.address, path, body)

    async def request_peer(self, path: str, body: bytes | None = None) -> str:
        """Send a request to the app of the other process, and return the body of the response."""
        _, answer = await self._request(self.peer_address, path, body)
        return answer

    async def _request(self, address: str, path: str, body: bytes | None) -> tuple[int, str]:
        method = "GET" if body is None else "POST"
        async with self._http.request(method, f"http://{address}{path}", data=body) as response:
            return response.status, await response.text()

    async def facts(self) -> dict[str, Any]:
        """Return the numbers of tasks and open files of the bridge's processes, and its subscriptions at NATS."""
        _, answer = await self.request("/facts")
        found: dict[str, Any] = json.loads(answer)
        found["files"] = self.open_files()
        if self.peer is not None:
            found["tasks"] += json.loads(await self.request_peer("/facts"))["tasks"]
            found["files"] += open_files(self.peer.pid)
        server = next((each for each in self.servers if each.port == found["nats"]), self.nats)
        return found | {"subscriptions": server.subscriptions()}

    @property
    def peer_address(self) -> str:
        """Host and port of the other process."""
        assert self.peer is not None
        return _address(self.peer)

    async def wait_for_control(self, state: str) -> None:
        """Wait until each process reports this state of its control channel.

        Raises:
            TimeoutError: A process did not report it.
        """
        deadline = time.monotonic() + _CONTROL_SECONDS
        for address in (self.address, self.peer_address):
            while state != json.loads((await self._request(address, "/nats/health/ready", None))[1])["control"]:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not within {_CONTROL_SECONDS:g} s: the control channel is {state}")
                await asyncio.sleep(0.05)

    async def revoke_from_peer(self, client: Client) -> bool:
        """Have the other process revoke a session, and return whether all processes were notified at once."""
        announced: bool = json.loads(await self.request_peer(f"/revoke/{client.session}", b""))["announced"]
        return announced

    def open_files(self) -> int:
        """Return the number of open files of the bridge's process."""
        return open_files(self.bridge.pid)

    async def connected_server(self) -> NatsServer:
        """Return the NATS server to which the bridge is connected."""
        port = (await self.facts())["nats"]
        return next(each for each in self.servers if each.port == port)


def _address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"
