"""Replacements for a NATS server: a proxy that harms the connection, and a peer controlled by a test."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Self

from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from sanic_nats_bridge.testing import NatsServer

INFO = b'INFO {"max_payload":1048576}\r\n'


class _ClosingTransport(TcpTransport):
    """A transport that closes the socket of an attempt to connect before the next one, which nats-py doesn't."""

    def __bool__(self) -> bool:
        # The client replaces a transport that is false, as one is before it has connected.
        return True

    async def connect(self, *arguments: Any, **named: Any) -> None:
        if self._io_writer is not None:
            self.close()  # type: ignore[no-untyped-call]
        await super().connect(*arguments, **named)


async def reconnecting_client(servers: list[str]) -> Client:
    """Return a client of nats-py that reconnects indefinitely, to servers that are killed and paused."""

    async def ignore(_: Exception) -> None:
        pass

    client = Client()
    client._transport = _ClosingTransport()  # type: ignore[no-untyped-call]
    await client.connect(
        servers,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,  # type: ignore[arg-type]
        ping_interval=1,
        connect_timeout=1,
        error_cb=ignore,
        pending_size=64 * 1024 * 1024,
    )
    return client


def sockets() -> int:
    """Return the number of open sockets of this process."""
    return sum(1 for link in Path("/proc/self/fd").iterdir() if _target(link).startswith("socket:"))


def _target(link: Path) -> str:
    # The descriptor by which the folder is read is closed by then.
    with contextlib.suppress(OSError):
        return str(link.readlink())
    return ""


class Proxy:
    """A proxy between a client and a server.

    ``forward`` cuts or changes the server's data. ``hole`` swallows everything, in both directions, until it is
    cleared: connections stay open.
    """

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self.port = 0
        self.accepted = 0
        self.hole = False
        self.forward: Callable[[bytes], Iterable[bytes]] = lambda data: (data,)

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, server: NatsServer) -> AsyncIterator[Self]:
        proxy = cls(server)
        async with _serving(proxy._accept) as proxy.port:
            yield proxy

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            pumps = (self._pump(reader, to_server, None), self._pump(from_server, writer, self))
            await asyncio.wait([asyncio.create_task(pump) for pump in pumps], return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, changed: "Proxy | None") -> None:
        # Swallowed data is lost with the connection: nothing is made whole again.
        swallowed = False
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                swallowed = swallowed or self.hole
                for part in () if swallowed else (changed.forward(data) if changed else (data,)):
                    target.write(part)
                    await target.drain()


class NamedConnections(Proxy):
    """A proxy that knows the connections of a bridge by the names that NATS shows, and cuts some of them."""

    def __init__(self, server: NatsServer) -> None:
        super().__init__(server)
        self._cut: set[str] = set()
        self._writers: dict[str, set[asyncio.StreamWriter]] = {}

    def cut(self, name: str) -> None:
        """Close the connections of a name, and let no other one through until it is restored."""
        self._cut.add(name)
        for writer in self._writers.get(name, ()):
            writer.close()

    def restore(self, name: str) -> None:
        self._cut.discard(name)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            writer.write(await from_server.readline())
            line = await reader.readline()
            name = json.loads(line.removeprefix(b"CONNECT ") or b"{}").get("name", "")
            if name in self._cut:
                return
            self._writers.setdefault(name, set()).update([writer, to_server])
            to_server.write(line)
            pumps = (self._pump(reader, to_server, None), self._pump(from_server, writer, self))
            await asyncio.wait([asyncio.create_task(pump) for pump in pumps], return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.close()
            writer.close()


class Peer:
    """A server that speaks the NATS protocol to one client after another, with optional deviations."""

    def __init__(
        self, *, greeting: bytes = INFO, welcome: bytes = b"PONG\r\n", answers: bool = True, reads: bool = True
    ) -> None:
        self.greeting = greeting
        self.welcome = welcome
        self.answers = answers
        self.reads = reads
        self.port = 0
        self.lines: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["Peer"]:
        async with _serving(self._accept) as self.port:
            yield self

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def accepted(self) -> int:
        return len(self.writers)

    def say(self, data: bytes, *, then_close: bool = False) -> None:
        """Send data to the newest client."""
        self.writers[-1].write(data)
        if then_close:
            self.writers[-1].close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(self.greeting)
        pong = self.welcome
        if not self.reads:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                self.lines.append(line)
                if line == b"PING\r\n" and self.answers:
                    writer.write(pong)
                    pong = b"PONG\r\n"


@contextlib.asynccontextmanager
async def _serving(accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await accept(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=2**20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
