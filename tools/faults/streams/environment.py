"""The environment of a drill: NATS with two streams, workers, clients that are cut off and resume, and a publisher."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import aiohttp
import nats.errors
from nats.aio.client import Client
from nats.js.api import StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import NotFoundError

from sanic_nats_bridge.testing import NatsServer

from ..machine import Machine
from ..nats import repeated, stream_leader
from ..workload import InjectionError, until
from .content import read_stream
from .cutting import CuttingProxy
from .logs import Stored, Truth
from .members import Member
from .profiles import STREAMS
from .publisher import Publisher, Record

__all__ = ["StreamEnvironment"]

_PATIENCE = 10.0
"""Seconds for one answer of NATS."""
_SETTLE_SECONDS = 90.0
_CONSUMER_PREFIX = "natsbridge-"
_SMALL_SECONDS = 0.5
_MEAN_BYTES_UNTIL_CUT = 3000


class StreamEnvironment:
    """The parts on which a fault acts, and what it may do to them.

    Args:
        servers: The NATS servers.
        client: The connection of the administrator and publisher.
        small: Keep faults very short.
        seed: Decides who is cut off when.
        storage: The storage of the streams.
        replicas: Their replicas.
        batch: The number of messages that are published at once.
        interval: Seconds between two batches.
        cut_interval: The mean time until the next client is cut off, in seconds; 0 to cut off none.

    Attributes:
        ports: The ports of the workers.
        members: The clients.
        machine: The machine of the workers, if Sanic's manager runs them.
        proxies: The proxies by which clients connect, if they do.
    """

    def __init__(
        self,
        servers: Sequence[NatsServer],
        client: Client,
        *,
        small: bool,
        seed: str,
        storage: StorageType,
        replicas: int,
        batch: int,
        interval: float,
        cut_interval: float,
    ) -> None:
        self.servers = servers
        self.client = client
        self.ports: Sequence[int] = ()
        self.members: Sequence[Member] = ()
        self.small = small
        self.machine: Machine | None = None
        self.proxies: Sequence[CuttingProxy] = ()
        self.record = Record()
        self.publisher = Publisher(client, self.record, random.Random(seed), batch=batch, interval=interval)
        self.first_message_after: list[float] = []
        self.remarks: list[str] = []
        self.failures: list[str] = []
        self._rng = random.Random(f"cuts {seed}")
        self._cut_interval = cut_interval
        self._cutting: asyncio.Task[None] | None = None
        self._storage = storage
        self._replicas = replicas

    # The streams

    @property
    def jetstream(self) -> JetStreamContext:
        """JetStream, for the administrator."""
        return self.client.jetstream(timeout=_PATIENCE)

    def config(self, name: str) -> StreamConfig:
        """Return the configuration of a stream."""
        return StreamConfig(
            name=name,
            subjects=[STREAMS[name]],
            storage=self._storage,
            num_replicas=self._replicas,
            allow_direct=name == "ORDERS",
        )

    async def make_stream(self, name: str) -> None:
        """Create a stream."""
        await self.repeat(lambda: self.jetstream.add_stream(self.config(name)))

    async def make_streams(self) -> None:
        """Create the streams, with a message on each subject."""
        for name in STREAMS:
            await self.make_stream(name)
        await self.publisher.open()
        await self.publisher.publish_last()

    async def repeat(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of an operation on NATS, as soon as it succeeds.

        Raises:
            InjectionError: It never does.
        """
        return await repeated(operation)

    async def request(self, subject: str, payload: bytes = b"") -> dict[str, Any]:
        """Return the answer to a request of the JetStream API, or an empty dictionary."""
        with contextlib.suppress(nats.errors.Error, TimeoutError):
            answer: dict[str, Any] = json.loads((await self.client.request(subject, payload, timeout=_PATIENCE)).data)
            return answer
        return {}

    async def leader(self, name: str) -> NatsServer:
        """Return the server that leads a stream."""
        return await stream_leader(self.jetstream, self.servers, name)

    async def consumers(self) -> dict[str, list[str]]:
        """Return the names of the bridge's consumers of each stream that exists."""
        found = {}
        for name in STREAMS:
            with contextlib.suppress(NotFoundError):
                infos = await self.repeat(lambda name=name: self.jetstream.consumers_info(name))  # type: ignore[misc]
                found[name] = [info.name for info in infos if info.name.startswith(_CONSUMER_PREFIX)]
        return found

    # The clients

    async def start(self) -> None:
        """Begin to publish, and connect all clients."""
        await self.publisher.start()
        for member in self.members:
            member.start()
        await self.wait_live()
        if self._cut_interval:
            self._cutting = asyncio.create_task(self._cut())

    async def wait_live(self) -> None:
        """Wait until each client that isn't away has caught up."""
        with self.explained(lambda member: not member.client.is_live):
            await until(
                lambda: all(each.client.is_live for each in self.members if each.present.is_set()),
                "all clients have caught up",
                _SETTLE_SECONDS,
            )

    async def stop_cutting(self) -> None:
        """Cut no more clients off at random."""
        if self._cutting is not None:
            self._cutting.cancel()
            await asyncio.wait({self._cutting})
            self._cutting = None
        for member in self.members:
            member.client.cut_after(None)

    def start_cutting(self) -> None:
        """Cut clients off at random again."""
        self._cutting = asyncio.create_task(self._cut())

    async def _cut(self) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0, 2 * self._cut_interval))
            connected = [each.client for each in self.members if each.client.connected]
            if connected:
                client = self._rng.choice(connected)
                if self._rng.random() < 0.5:
                    await client.cut()
                else:
                    client.cut_after(int(self._rng.expovariate(1 / _MEAN_BYTES_UNTIL_CUT)))

    async def send_away(self, share: int) -> list[Member]:
        """Let every so many clients leave, and return them."""
        away = list(self.members[::share])
        for member in away:
            await member.leave()
        return away

    def bring_back(self, members: Sequence[Member]) -> None:
        """Let clients reconnect."""
        for member in members:
            member.present.set()

    async def wait_complete(self) -> None:
        """Wait until each client that isn't away is live, with the newest acknowledged message of each pattern."""
        latest = self.record.latest
        with self.explained(lambda member: not (member.client.is_live and member.has_all(latest))):
            await until(
                lambda: all(
                    each.client.is_live and each.has_all(latest) for each in self.members if each.present.is_set()
                ),
                "all clients have all messages",
                _SETTLE_SECONDS,
            )

    async def rest(self) -> None:
        """Cut off no client, publish nothing more, and wait until each client that isn't away has everything."""
        await self.stop_cutting()
        await self.publisher.stop()
        await self.wait_live()
        await self.publisher.publish_last()
        await self.publisher.flush()
        await self.wait_complete()

    @contextlib.contextmanager
    def explained(self, is_late: Callable[[Member], bool]) -> Iterator[None]:
        """Name clients in a timeout."""
        try:
            yield
        except TimeoutError as error:
            late = [each.client.log for each in self.members if each.present.is_set() and is_late(each)]
            names = ", ".join(log.name for log in late[:5])
            last = late[0].entries[-5:] if late else ""
            raise TimeoutError(f"{error}; not {names}, of {len(late)}; {last}") from None

    # The fault

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """Wait after the fault until every client receives messages again, and measure the time."""
        yield
        ended = time.monotonic()
        number = self.publisher.number
        with self.explained(lambda member: not member.has_after(number)):
            await until(
                lambda: all(each.has_after(number) for each in self.members if each.present.is_set()),
                "every client receives messages",
                _SETTLE_SECONDS,
            )
        self.first_message_after.append(time.monotonic() - ended)

    async def sleep(self, seconds: float, small: float = _SMALL_SECONDS) -> None:
        """Sleep for this time, or for a short one in a small run."""
        await asyncio.sleep(min(seconds, small) if self.small else seconds)

    def require(self, condition: bool, failure: str) -> None:
        """Check a condition without which the fault was not injected.

        Raises:
            InjectionError: The condition is false.
        """
        if not condition:
            raise InjectionError(failure)

    @property
    def cuts(self) -> int:
        """Number of connections that the proxies have cut."""
        return sum(proxy.count for proxy in self.proxies)

    async def post(self, worker: int, path: str) -> None:
        """Send a POST to a worker."""
        connector = aiohttp.TCPConnector(force_close=True)
        url = f"http://127.0.0.1:{self.ports[worker]}{path}"
        async with aiohttp.ClientSession(connector=connector) as http, http.post(url) as response:
            await response.read()

    # The end

    async def finish(self) -> Truth:
        """Let all clients receive everything, and return what the streams have held."""
        await self.stop_cutting()
        await self.publisher.stop()
        self.bring_back(self.members)
        await self.wait_live()
        await self.publisher.publish_last()
        content: dict[str, list[Stored]] = {}
        for name in STREAMS:
            content[name] = await self.repeat(lambda name=name: read_stream(self.client, name, _PATIENCE))  # type: ignore[misc]
        try:
            await self.wait_complete()
        except TimeoutError as error:
            # The check of the logs reports what is missing.
            self.failures.append(str(error))
        return self.record.truth(content)
