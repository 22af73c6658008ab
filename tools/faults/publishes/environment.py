"""The environment of a drill: NATS with a stream, workers between two proxies, and clients that publish."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence

from nats.aio.client import Client
from nats.js.api import StorageType, StreamConfig
from nats.js.client import JetStreamContext

from sanic_nats_bridge.testing import NatsServer

from ..machine import Machine
from ..nats import repeated, stream_leader
from ..workload import InjectionError, until
from .authors import PATTERN, STREAM
from .holding import HoldingProxy
from .records import Stored
from .senders import Sender

__all__ = ["PublishEnvironment"]

_PATIENCE = 10.0
"""Seconds for one answer of NATS."""
_SETTLE_SECONDS = 150.0
"""Longer than any client repeats."""
_SMALL_SECONDS = 0.5
_DUPLICATE_WINDOW = 120.0
_UNANSWERED = 3
_POLL_SECONDS = 0.05


class PublishEnvironment:
    """The parts on which a fault acts, and what it may do to them.

    Args:
        servers: The NATS servers.
        client: The connection of the administrator.
        small: Keep faults very short.

    Attributes:
        machine: The machine of the workers.
        front: The proxy between clients and workers.
        back: The proxy between workers and NATS, unless there are several servers.
        senders: The clients.
    """

    machine: Machine
    front: HoldingProxy

    def __init__(self, servers: Sequence[NatsServer], client: Client, *, small: bool) -> None:
        self.servers = servers
        self.small = small
        self.back = HoldingProxy(servers[0].port)
        self.senders: Sequence[Sender] = ()
        self.first_message_after: list[float] = []
        self._client = client

    @property
    def jetstream(self) -> JetStreamContext:
        """JetStream, for the administrator."""
        return self._client.jetstream(timeout=_PATIENCE)

    async def make_stream(self) -> None:
        """Create the stream."""
        config = StreamConfig(
            name=STREAM,
            subjects=[PATTERN],
            storage=StorageType.FILE,
            num_replicas=len(self.servers),
            duplicate_window=_DUPLICATE_WINDOW,
        )
        await repeated(lambda: self.jetstream.add_stream(config))

    async def leader(self) -> NatsServer:
        """Return the server that leads the stream."""
        return await stream_leader(self.jetstream, self.servers, STREAM)

    async def step_down(self) -> None:
        """Let the leader of the stream step down."""
        await self._client.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}", timeout=_PATIENCE)

    async def start(self) -> None:
        """Let all clients publish."""
        for sender in self.senders:
            sender.start()
        await self._wait_acknowledged(time.monotonic())

    @contextlib.asynccontextmanager
    async def fault(self) -> AsyncIterator[None]:
        """Wait after the fault until every client gets acknowledgements again, and measure the time."""
        yield
        ended = time.monotonic()
        await self._wait_acknowledged(ended)
        self.first_message_after.append(time.monotonic() - ended)

    async def sleep(self, seconds: float, small: float = _SMALL_SECONDS) -> None:
        """Sleep for this time, or for a short one in a small run."""
        await asyncio.sleep(min(seconds, small) if self.small else seconds)

    async def store_unanswered(self, proxy: HoldingProxy) -> None:
        """Hold answers back, until the stream has messages whose clients don't know it."""
        proxy.hold()
        first = await self._count()
        deadline = time.monotonic() + _PATIENCE
        while await self._count() < first + _UNANSWERED:
            self.require(time.monotonic() < deadline, "the stream gets no messages")
            await asyncio.sleep(_POLL_SECONDS)
        await self.sleep(1)

    async def _count(self) -> int:
        info = await repeated(lambda: self.jetstream.stream_info(STREAM))
        return int(info.state.messages)

    def require(self, condition: bool, failure: str) -> None:
        """Check a condition without which the fault was not injected.

        Raises:
            InjectionError: The condition is false.
        """
        if not condition:
            raise InjectionError(failure)

    async def finish(self) -> list[Stored]:
        """Let everything in progress settle, and return the content of the stream."""
        for sender in self.senders:
            sender.stop()
        with contextlib.suppress(TimeoutError):
            # The check names those that are left.
            await until(lambda: all(each.settled for each in self.senders), "all publishes settle", _SETTLE_SECONDS)
        stored: list[Stored] = await repeated(self._read)
        return stored

    async def _wait_acknowledged(self, since: float) -> None:
        def waiting() -> list[str]:
            return [each.name for each in self.senders if not each.acknowledged_since(since)]

        try:
            await until(lambda: not waiting(), "every client gets acknowledgements", _SETTLE_SECONDS)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; not {waiting()}") from None

    async def _read(self) -> list[Stored]:
        subscription = await self.jetstream.subscribe(PATTERN, stream=STREAM, ordered_consumer=True)
        info = await self.jetstream.stream_info(STREAM)
        stored: list[Stored] = []
        while len(stored) < info.state.messages:
            message = await subscription.next_msg(timeout=_PATIENCE)
            place = message.metadata.sequence.stream
            stored.append(Stored(place, message.subject, json.loads(message.data), message.headers or {}))
        await subscription.unsubscribe()
        return stored
