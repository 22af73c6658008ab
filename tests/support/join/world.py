"""Servers, bridges, a publisher and clients of streams, and the steps by which they are harmed."""

import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Self

import nats.errors
from nats.aio.client import Client
from nats.js.api import StreamConfig
from nats.js.errors import APIError

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import Bridge, flush, free_port, running, until
from tests.support.clock import moment
from tests.support.nats import reconnecting_client
from tools.faults.patterns import matches
from tools.faults.streams.clients import EventsClient, SocketClient, StreamClient
from tools.faults.streams.content import read_stream
from tools.faults.streams.logs import Log, Stored
from tools.faults.streams.profiles import PROFILES, STREAMS, Profile, profile_of
from tools.harness.tcp_proxy import Proxy

__all__ = ["Nats", "World", "WorldSettings"]

_CLIENTS = 40
_BURST = 40
_PAD = 1500
_LOOKS = 6_000
_PATIENCE = 10
"""Seconds for one answer of NATS."""


@dataclass(frozen=True)
class WorldSettings:
    """The settings of both bridges that differ between walks."""

    options: dict[str, Any]
    servers: int = 1


class Nats:
    """One server with JetStream, or a cluster."""

    def __init__(self, count: int) -> None:
        routes = [free_port() for _ in range(count)]
        joined = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        configs = [
            f"server_name: n{index}\ncluster {{ name: C, listen: 127.0.0.1:{port}, routes: [{joined}] }}\n"
            for index, port in enumerate(routes)
        ]
        self.servers = [NatsServer(jetstream=True, config=config if count > 1 else "") for config in configs]
        self.down: int | None = None
        self.paused: int | None = None

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.close()

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    @property
    def is_whole(self) -> bool:
        return self.down is None and self.paused is None


class World:
    """All parts of a walk."""

    def __init__(self, servers: Nats, seed: str, settings: WorldSettings) -> None:
        self.rng = random.Random(seed)
        self.nats = servers
        self.settings = settings
        self.bridges: list[Bridge | None] = [None, None]
        self.clients: list[StreamClient] = []
        self.done: list[StreamClient] = []
        self.steps: Counter[str] = Counter()
        self.denied: set[str] = set()
        self._proxies = [Proxy(server.port) for server in servers.servers]
        self._stacks: list[contextlib.AsyncExitStack] = []
        self._numbers = itertools.count(1)
        self._names = itertools.count(1)
        self._client: Client | None = None
        self._lagging = False

    @classmethod
    @contextlib.asynccontextmanager
    async def made(cls, servers: Nats, seed: str, settings: WorldSettings) -> AsyncIterator[Self]:
        world = cls(servers, seed, settings)
        async with contextlib.AsyncExitStack() as stack:
            for proxy in world._proxies:
                await stack.enter_async_context(proxy.running())
            world._client = await reconnecting_client(servers.urls)
            stack.push_async_callback(world._client.close)
            await world._make_streams()
            stack.push_async_callback(world._stop)
            for index in range(2):
                await world._start(index)
            yield world

    async def _make_streams(self) -> None:
        stream = self.client.jetstream(timeout=_PATIENCE)
        for name, subject in STREAMS.items():
            config = StreamConfig(
                name=name, subjects=[subject], allow_direct=name == "ORDERS", num_replicas=len(self.nats.servers)
            )

            async def add(config: StreamConfig = config) -> bool:
                with contextlib.suppress(APIError, nats.errors.Error):
                    await stream.add_stream(config)
                    return True
                return False

            await _repeat(add)

    async def _start(self, index: int) -> None:
        stack = contextlib.AsyncExitStack()
        urls = [proxy.url for proxy in self._proxies] if index else self.nats.urls
        bridge = running(
            servers=urls,
            connected=False,
            ignore_discovered_servers=True,
            permissions=self._permissions,
            streams=dict.fromkeys(STREAMS),
            command_rate=1000,
            command_burst=10_000,
            heartbeat=0.4,
            **{"ping_interval": 1, "connect_timeout": 2, "confirm_timeout": 2, **self.settings.options},
        )
        self.bridges[index] = await stack.enter_async_context(bridge)
        self._stacks.insert(index, stack)

    async def _stop(self) -> None:
        for client in self.clients:
            await client.close()
        for stack in self._stacks:
            await stack.aclose()

    async def _permissions(self, request: Any) -> Permissions:
        user = request.headers["x-user"]
        return Permissions(**profile_of(user).permissions(user, denied=user in self.denied))

    @property
    def client(self) -> Client:
        assert self._client is not None
        return self._client

    @property
    def messages(self) -> int:
        """The number of messages that all clients have received."""
        return sum(client.messages for client in (*self.clients, *self.done))

    # Steps

    async def take(self) -> None:
        """Take one step."""
        steps: list[tuple[int, Callable[[], Coroutine[Any, Any, None]]]] = [
            (30, self.publish),
            (12, self.open),
            (20, self.cut),
            (10, self.cut_soon),
            (6, self.follow_more),
            (5, self.drop),
            (4, self.be_slow),
            (4, self.change_permissions),
            (2, self.leave),
            (2, self.lag),
            (1, self.restart_worker),
            (2, self.harm),
        ]
        step = self.rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
        self.steps[step.__name__] += 1
        await step()
        for client in self.clients:
            if not client.connected and self.rng.random() < 0.3:
                await self.connect(client)
        for _ in range(self.rng.choice((0, 0, 1, 3))):
            await moment()

    async def connect(self, client: StreamClient) -> None:
        bridge = self.bridges[self.rng.randrange(2)]
        if bridge is not None:
            await client.connect(bridge.port)

    async def publish(self, *, last: bool = False) -> None:
        """Publish messages on any subjects, or a last one on each of them."""
        if last:
            subjects = [f"orders.{a}.{b}" for a in range(5) for b in range(8)]
            subjects += [f"trades.{a}.{b}" for a in range(3) for b in range(4)]
        else:
            subjects = [self._subject() for _ in range(self.rng.randint(1, _BURST))]
        for subject in subjects:
            number = next(self._numbers)
            pad = "x" * self.rng.choice((0, 0, 10, _PAD))
            content: dict[str, Any] = {"n": number, "pad": pad} | ({"last": True} if last else {})
            with contextlib.suppress(nats.errors.Error):
                await self.client.publish(subject, json.dumps(content).encode())

    def _subject(self) -> str:
        if self.rng.random() < 0.7:
            return f"orders.{self.rng.randrange(5)}.{self.rng.randrange(8)}"
        return f"trades.{self.rng.randrange(3)}.{self.rng.randrange(4)}"

    async def open(self) -> None:
        """Let one more client come."""
        if len(self.clients) >= _CLIENTS:
            return
        profile = self.rng.choice(PROFILES)
        user, rng = f"{profile.name}-{next(self._names)}", random.Random(self.rng.random())
        patterns = self.rng.sample(profile.patterns, self.rng.randint(1, 3))
        if self.rng.random() < 0.4:
            client: StreamClient = EventsClient(user, profile, rng, patterns, self._start_of(profile))
        else:
            socket_client = SocketClient(user, profile, rng)
            socket_client.starts = dict.fromkeys(patterns, self._start_of(profile))
            client = socket_client
        self.clients.append(client)
        await self.connect(client)

    def _start_of(self, profile: Profile) -> Any:
        if not profile.history:
            return "new"
        return self.rng.choice(("new", "new", "all", {"last": self.rng.choice((1, 10, 300))}, "last_per_subject"))

    def _some(self, kind: type[StreamClient] = StreamClient) -> StreamClient | None:
        found = [client for client in self.clients if client.connected and isinstance(client, kind)]
        return self.rng.choice(found) if found else None

    async def cut(self) -> None:
        """Cut a client off now."""
        if client := self._some():
            await client.cut()

    async def cut_soon(self) -> None:
        """Cut a client off after some more bytes."""
        if client := self._some():
            client.cut_after(int(self.rng.expovariate(1 / 3000)))

    async def follow_more(self) -> None:
        """Let a client follow more patterns, while others may be in a replay."""
        client = self._some(SocketClient)
        if isinstance(client, SocketClient) and client.is_open:
            new = [each for each in client.profile.patterns if each not in client.starts]
            if new:
                client.follow(
                    self.rng.sample(new, self.rng.randint(1, min(2, len(new)))), self._start_of(client.profile)
                )

    async def drop(self) -> None:
        """Let a client unsubscribe."""
        client = self._some(SocketClient)
        if isinstance(client, SocketClient) and client.is_open and len(client.kept) > 1:
            client.drop([self.rng.choice(client.kept)])

    async def be_slow(self) -> None:
        """Let a client read nothing, or read again."""
        if client := self._some():
            if client.slow.is_set():
                client.slow.clear()
            else:
                client.slow.set()

    async def change_permissions(self) -> None:
        """Hide subjects from a client, or show them again."""
        # Not those whose sessions are being opened, with the permissions from before.
        clients = [
            each
            for each in self.clients
            if each.profile.toggled and isinstance(each, SocketClient) and each.is_open is each.connected
        ]
        if not clients:
            return
        client = self.rng.choice(clients)
        self.denied ^= {client.user}
        is_denied = client.user in self.denied
        client.begin_change()
        permissions = Permissions(**client.profile.permissions(client.user, denied=is_denied))
        for bridge in self.bridges:
            if bridge is not None:
                # Without notifying the other worker: its copy could arrive after the next change, and undo that.
                bridge.runtime.sessions.update_permissions(permissions, client.user, None)
        if client.connected:
            client.changed(client.profile.toggled if is_denied else ())

    async def leave(self) -> None:
        """Let a client go for good."""
        if self.clients and self.rng.random() < 0.5:
            client = self.clients.pop(self.rng.randrange(len(self.clients)))
            await client.close()
            client.log.complete = False
            self.done.append(client)

    async def lag(self) -> None:
        """Stop the connections of one worker to NATS, or let them go on."""
        self._lagging = not self._lagging
        for proxy in self._proxies:
            (proxy.pause if self._lagging else proxy.resume)()

    async def restart_worker(self) -> None:
        """Stop one worker, and start another one in its place."""
        index = self.rng.randrange(2)
        self.bridges[index] = None
        await self._stacks.pop(index).aclose()
        await self._start(index)

    async def harm(self) -> None:
        """Harm NATS, or undo it."""
        if not self.nats.is_whole:
            await self.heal()
        else:
            index = self.rng.randrange(len(self.nats.servers))
            kind = self.rng.choice(("kill", "pause", "consumers", "leader"))
            self.steps[kind] += 1
            if kind == "kill":
                self.nats.servers[index].kill()
                self.nats.down = index
            elif kind == "pause":
                self.nats.servers[index].pause()
                self.nats.paused = index
            elif kind == "consumers":
                await self._delete_consumers()
            elif len(self.nats.servers) > 1:
                await self._request("$JS.API.STREAM.LEADER.STEPDOWN.ORDERS")

    async def heal(self) -> None:
        """Undo all harm to NATS."""
        if self.nats.down is not None:
            await asyncio.to_thread(self.nats.servers[self.nats.down].start)
            self.nats.down = None
        if self.nats.paused is not None:
            self.nats.servers[self.nats.paused].resume()
            self.nats.paused = None

    async def _request(self, subject: str, payload: bytes = b"") -> dict[str, Any] | None:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            answer: dict[str, Any] = json.loads((await self.client.request(subject, payload, timeout=_PATIENCE)).data)
            return answer
        return None

    async def _delete_consumers(self) -> None:
        for name in STREAMS:
            answer = await self._request(f"$JS.API.CONSUMER.NAMES.{name}") or {}
            for consumer in answer.get("consumers") or ():
                await self._request(f"$JS.API.CONSUMER.DELETE.{name}.{consumer}")

    # The end

    async def settle(self) -> list[Log]:
        """End all harm, and let all clients receive everything; return their logs."""
        await self.heal()
        if self._lagging:
            await self.lag()
        await until(lambda: self.client.is_connected)
        await self._until_all(lambda client: client.is_live)
        await self.publish(last=True)
        await _repeat(self._flushed)
        await self._until_complete(await self.truth())
        return [replace(each.log, entries=list(each.log.entries)) for each in (*self.clients, *self.done)]

    async def _flushed(self) -> bool:
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            await flush(self.client)
            return True
        return False

    async def _until_complete(self, truth: dict[str, list[Stored]]) -> None:
        """Wait until each client has the newest message of each of its patterns."""

        newest: dict[tuple[Profile, str], int] = {}

        def newest_of(profile: Profile, pattern: str) -> int:
            if (profile, pattern) not in newest:
                stream, real = profile.real(pattern)
                shown = (each for each in reversed(truth[stream]) if matches(real, each.subject))
                shown = (
                    each for each in shown if not profile.hides(each.subject) and not profile.may_hide(each.subject)
                )
                newest[profile, pattern] = next((each.number for each in shown), 0)
            return newest[profile, pattern]

        def has(client: StreamClient, pattern: str) -> bool:
            number = newest_of(client.profile, pattern)
            return not number or client.newest.get(pattern, 0) >= number

        await self._until_all(lambda client: client.is_live and all(has(client, each) for each in client.followed))

    async def _until_all(self, is_done: Callable[[StreamClient], bool]) -> None:
        """Wait until something is true of all clients, or for long. The check of their logs shows the reason then."""
        for _ in range(_LOOKS):
            if all(map(is_done, self.clients)):
                return
            for client in self.clients:
                client.slow.set()
                if not client.connected:
                    await self.connect(client)
            await moment()

    async def truth(self) -> dict[str, list[Stored]]:
        """Return what the streams hold, by the word of their leaders."""
        return {name: await self._read_stream(name) for name in STREAMS}

    async def _read_stream(self, name: str) -> list[Stored]:
        stored: list[Stored] = []

        async def read() -> bool:
            with contextlib.suppress(APIError, nats.errors.Error, TimeoutError):
                stored[:] = await read_stream(self.client, name, _PATIENCE)
                return True
            return False

        await _repeat(read)
        return stored


async def _repeat(attempt: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    for _ in range(300):
        if await attempt():
            return
        await moment()
    raise AssertionError("NATS doesn't answer")
