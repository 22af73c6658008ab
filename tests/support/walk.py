"""A bridge, its clients and NATS, and what may happen to them in any order."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Bridge, EventClient, Publisher, ServerName, running, until
from tests.support.model import (
    MAX_SUBSCRIPTIONS,
    OF_THE_QUERY,
    SUBJECTS,
    EventFollower,
    Follower,
    Record,
    WebSocketFollower,
)
from tests.support.raw import UPGRADE, client_frame, reset, sessions
from tools.harness.tcp_proxy import Proxy

_WITNESSED: Final = "w.fence"
_SETTINGS: Final[dict[str, Any]] = {
    "subscribe": ["a.>", "b.>", "n.>", "w.>"],
    "max_subscriptions": MAX_SUBSCRIPTIONS,
    "unsubscribe_delay": 0.02,
    # No client is slowed down or disconnected.
    "command_rate": 1e6,
    "command_burst": 1_000_000,
    "max_bad_commands": 1_000_000,
    "max_subscribe_rate": 1e6,
}
_NATS_CONFIG: Final = """
authorization: {users: [{user: u, password: p, permissions: {subscribe: {deny: ["n.>"]}}}]}
no_auth_user: u
"""


class World:
    """A bridge, its clients and NATS."""

    def __init__(self, nats: NatsServer, proxy: Proxy, bridge: Bridge, publisher: contextlib.AsyncExitStack) -> None:
        self.followers: list[Follower] = []
        self.record = Record()
        self.steps = 0
        self.up = True
        self._nats = nats
        self._nats_proxy = proxy
        self._bridge = bridge
        self._publisher_open = publisher
        self._publisher: Publisher
        self._http: aiohttp.ClientSession
        self._witness: Follower
        self._baseline = (0, 0)

    @classmethod
    @contextlib.asynccontextmanager
    async def made(cls, server: ServerName) -> AsyncIterator["World"]:
        """Create a world with only a witness, which follows a subject of its own."""
        with NatsServer(config=_NATS_CONFIG) as nats:
            async with (
                Proxy(nats.port).running() as proxy,
                running(servers=proxy.url, server=server, **_SETTINGS) as bridge,
                contextlib.AsyncExitStack() as publisher,
            ):
                world = cls(nats, proxy, bridge, publisher)
                asyncio.get_running_loop().set_exception_handler(
                    lambda _, context: world.record.complaints.append(repr(context))
                )
                await world._connect_publisher()
                world._witness = await world._websocket()
                await world._witness.command("subscribe", [_WITNESSED])
                await world.rest()
                world._baseline = world._held()
                yield world
                await world._witness.leave(politely=True)
                world.judge()

    async def _connect_publisher(self) -> None:
        self._publisher = await self._publisher_open.enter_async_context(Publisher.connected(self._nats))

    def judge(self) -> None:
        """Fail if there are complaints since the last call."""
        complaints = self.record.complaints.copy()
        self.record.complaints.clear()
        assert not complaints, complaints

    # What may happen

    async def begin(self) -> None:
        """Begin a walk, whose requests go by connections of its own."""
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._bridge = replace(self._bridge, _http=self._http)

    async def open_websocket(self) -> None:
        self.followers.append(await self._websocket())

    async def _websocket(self) -> Follower:
        stack = contextlib.AsyncExitStack()
        return WebSocketFollower(self.record, await stack.enter_async_context(self._bridge.websocket()), stack)

    async def open_events(self, patterns: Sequence[str]) -> None:
        stack = contextlib.AsyncExitStack()
        dispatched = self.record.dispatched
        query = [("subjects", pattern) for pattern in patterns]
        response = await stack.enter_async_context(self._http.get(f"{self._bridge.url}/events", params=query))
        client = EventClient(response)
        client.welcome = await client.frame()
        follower = EventFollower(self.record, client, stack, self._bridge)
        self.followers.append(follower)
        if patterns:
            follower.note(OF_THE_QUERY, "subscribe", patterns, dispatched)

    async def crash_in_haste(self, patterns: Sequence[str], turns: int) -> None:
        """Send a subscribe, and disconnect after so many turns of the event loop."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._bridge.port)
        writer.write(f"GET {self._bridge.prefix}/stream HTTP/1.1\r\n{UPGRADE}\r\n".encode())
        writer.write(client_frame(json.dumps({"subjects": patterns}).encode()))
        await _turns(turns)
        reset(writer.transport)

    async def leave(self, follower: Follower, *, politely: bool) -> None:
        self.followers.remove(follower)
        await follower.leave(politely=politely)

    async def publish(self, subject: str, count: int = 1) -> None:
        """Publish numbers, and return when the server has them."""
        numbers = range(self.record.published + 1, self.record.published + count + 1)
        self.record.published += count
        for number in numbers:
            for follower in self._followers:
                follower.published(number, subject)
        await self._publisher.send(subject, *(b"%d" % number for number in numbers))

    async def cut(self) -> None:
        """Break the connection of the bridge to NATS."""
        self._disturb()
        self._nats_proxy.cut()

    async def cut_twice(self, turns: int) -> None:
        """Break the connection to NATS, and the next one after so many turns of the event loop."""
        first = self._bridge.extension.client
        await self.cut()
        await _in_turns(lambda: self._bridge.extension.client not in (first, None))
        await _turns(turns)
        await self.cut()

    async def kill_nats(self) -> None:
        self._disturb()
        await self._publisher_open.aclose()
        self.up = False
        self._nats.kill()

    async def start_nats(self) -> None:
        self._nats.start()
        self.up = True
        await self._connect_publisher()

    def _disturb(self) -> None:
        self.record.cuts += 1
        self.record.calm = False

    async def settle(self) -> None:
        """Wait until every command is answered, and every message has come or is covered by a gap."""
        await self._until(lambda: not any(follower.waiting for follower in self._followers))
        await self._until(lambda: not any(follower.owed for follower in self._followers))

    async def rest(self) -> None:
        """Wait until all is done; then NATS and the bridge hold what the model holds."""
        if not self.up:
            await self.start_nats()
        await self._until(lambda: not any(follower.waiting for follower in self._followers))
        await self._fence()
        await self._until(lambda: all(follower.nats == "connected" for follower in self._followers))
        await self._until(lambda: self._nats.subscriptions() == self._patterns)
        await self._until(lambda: self._sessions == {follower.key: {*follower.held} for follower in self._followers})
        self.record.calm, self.record.noticed_cuts = True, self.record.cuts
        for follower in self._followers:
            follower.settle()
        for subject in SUBJECTS:
            await self.publish(subject)
        await self.settle()
        for follower in self._followers:
            follower.settle()

    async def _fence(self) -> None:
        """Wait until the bridge has a connection that was made after the last cut."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not await self._is_witnessed():
                pass

    async def _is_witnessed(self) -> bool:
        """Return True if a message passes the bridge in time; otherwise the message is lost."""
        await self.publish(_WITNESSED)
        number = self.record.published
        try:
            await until(lambda: self._witness.last >= number, seconds=0.2)
        except AssertionError:
            return False
        return True

    async def end(self) -> None:
        """Disconnect all clients, and check that nothing of them remains."""
        self.record.complaints.clear()
        for number, follower in enumerate(tuple(self.followers)):
            await self.leave(follower, politely=number % 2 == 0)
        await self._until(lambda: not self.record.tasks)
        await self._http.close()
        await self.rest()
        await self._until(lambda: self._held() == self._baseline)

    # What is

    @property
    def _followers(self) -> tuple[Follower, ...]:
        return self._witness, *self.followers

    @property
    def _patterns(self) -> list[str]:
        return sorted({pattern for follower in self._followers for pattern in follower.held})

    @property
    def _sessions(self) -> dict[str, set[str]]:
        return {session.key: {*session.subscriptions} for session in sessions(self._bridge)}

    def _held(self) -> tuple[int, int]:
        """Return the number of tasks and file descriptors of the whole process."""
        return len(asyncio.all_tasks()), sum(1 for _ in Path("/proc/self/fd").iterdir())

    async def _until(self, fact: Callable[[], bool]) -> None:
        try:
            await until(fact)
        except AssertionError as error:
            self.judge()
            raise AssertionError(self._facts()) from error
        self.judge()

    def _facts(self) -> str:
        return (
            f"owed: {[follower.owed for follower in self._followers]}; model: {self._patterns}; "
            f"NATS: {self._nats.subscriptions()}; sessions: {self._sessions}; "
            f"tasks and files: {self._held()}, {self._baseline} at the beginning"
        )


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _in_turns(fact: Callable[[], bool]) -> None:
    """Wait until the fact holds, to the very turn of the event loop."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not fact():
            await _turns(1)
