"""Publishers of numbered messages, in bare NATS protocol on a socket, without a client library."""

import asyncio
import contextlib
import json
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from sanic_nats_bridge.testing import NatsServer

from .gap_analysis import Publication
from .payloads import Key, digest, payload

__all__ = ["FuzzPublisher", "Publisher"]

_INTERVAL_SECONDS = 0.05
_RETRY_SECONDS = 0.05
_TIMEOUT_SECONDS = 60.0
_INVALID_SUBJECT_BYTES = frozenset(b"\r\n\t .*>\0")


class Message(NamedTuple):
    """A message to publish. ``headers`` is a whole header block, or empty."""

    subject: bytes
    headers: bytes = b""
    filler: bytes = b""


class Publisher:
    """A publisher that repeats one message on each of its subjects every ``interval`` seconds.

    Each of its connections numbers messages from 0. A message that isn't confirmed when its connection is lost may or
    may not have reached the server.

    Attributes:
        publications: All published messages.
        last_publications: The last messages, published by `finish`.
    """

    def __init__(
        self, name: str, server: NatsServer, subjects: Sequence[str], interval: float = _INTERVAL_SECONDS
    ) -> None:
        self.publications: list[Publication] = []
        self.last_publications: list[Publication] = []
        self._name = name
        self._server = server
        self._subjects = [subject.encode() for subject in subjects]
        self._interval = interval
        self._connections = 0
        self._connection: _Connection | None = None
        self._connected = asyncio.Event()
        self._moving = self._stopping = self._finished = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to publish as soon as the server is available."""
        self._task = asyncio.create_task(self._run())

    @property
    def server(self) -> NatsServer:
        """Server to which it publishes."""
        return self._server

    async def move(self, server: NatsServer) -> None:
        """Connect to another server, and wait until messages are published there."""
        self._server, self._moving = server, True
        self._connected.clear()
        await asyncio.wait_for(self._connected.wait(), _TIMEOUT_SECONDS)

    async def burst(self, subject: str, count: int, size: int) -> None:
        """Publish ``count`` messages at once, and wait until the server has confirmed them."""
        assert self._connection is not None
        message = Message(subject.encode(), filler=b"x" * size)
        await asyncio.wait_for(self._connection.publish([message] * count), _TIMEOUT_SECONDS)

    async def finish(self) -> None:
        """Publish a last message on each subject, wait until the server has confirmed them, and stop."""
        self._stopping = True
        if self._task is not None:
            await asyncio.wait_for(self._task, _TIMEOUT_SECONDS)

    async def abort(self) -> None:
        """Stop immediately."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def published_since(self, moment: float) -> Iterator[Publication]:
        """Return the messages published at or after the moment, the newest first."""
        return takewhile(lambda publication: publication.sent >= moment, reversed(self.publications))

    def messages(self) -> list[Message]:
        """Return the messages to publish next."""
        return [Message(subject) for subject in self._subjects]

    async def _run(self) -> None:
        while not self._finished:
            with contextlib.suppress(OSError):
                await self._publish_while_connected()
            if not self._finished:
                await asyncio.sleep(_RETRY_SECONDS)

    async def _publish_while_connected(self) -> None:
        reader, writer = await asyncio.open_connection(self._server.host, self._server.port)
        try:
            connection = _Connection(f"{self._name}.{self._connections}", reader, writer, self.publications)
            await connection.handshake()
            self._connections += 1
            self._connection = connection
            self._connected.set()
            while not (self._stopping or self._moving):
                connection.begin(self.messages())
                await asyncio.sleep(self._interval)
                connection.check()
            before = len(self.publications)
            await connection.publish(self.messages())
            self.last_publications = self.publications[before:]
            self._moving, self._finished = False, self._stopping
        finally:
            self._connection = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class FuzzPublisher(Publisher):
    """A publisher of random bytes in subjects below a token, in header blocks and in payloads."""

    def __init__(self, name: str, server: NatsServer, token: str, seed: int) -> None:
        super().__init__(name, server, ())
        self._token = token.encode()
        self._random = random.Random(seed)

    def messages(self) -> list[Message]:
        """Return eight random messages."""
        return [self._message() for _ in range(8)]

    def _message(self) -> Message:
        draw = self._random
        rest = bytes(byte for byte in draw.randbytes(draw.randint(1, 40)) if byte not in _INVALID_SUBJECT_BYTES)
        if draw.random() < 0.5:  # few random bytes are UTF-8
            rest = rest.decode("latin-1").encode()
        any_bytes = draw.randbytes(draw.randint(1, 60)) + b"\r\n\r\n"
        headers = draw.choice([b"", any_bytes, b"NATS/1.0\r\nX-Any: " + any_bytes])
        return Message(self._token + b"." + (rest or b"x"), headers, draw.randbytes(60))


class _Connection:
    """One connection, and the messages published on it."""

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, publications: list[Publication]
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._publications = publications
        self._number = 0
        self._unanswered: deque[tuple[list[Publication], asyncio.Future[None]]] = deque()
        self._reading: asyncio.Task[None] | None = None

    async def handshake(self) -> None:
        """Send CONNECT, and wait until the server has accepted it.

        Raises:
            ConnectionError: The server rejected the connection, or has ended.
        """
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        self._writer.write(b"CONNECT %b\r\n" % json.dumps(options).encode())
        await self._reader.readline()
        self._reading = asyncio.create_task(self._read())
        await _wait_answered(self._ping([]))

    def begin(self, messages: Iterable[Message]) -> asyncio.Future[None]:
        """Publish messages without waiting.

        Returns:
            A future that ends when the server has confirmed them, or is cancelled when the connection ends.
        """
        published, lines, now = [], [], time.monotonic()
        for message in messages:
            key = Key(self._name, self._number)
            self._number += 1
            data = payload(key, message.filler)
            published.append(Publication(key, _decoded(message.subject), digest(data), now))
            lines.append(_line(message, data))
        self._publications += published
        self._writer.write(b"".join(lines))
        return self._ping(published)

    async def publish(self, messages: Iterable[Message]) -> None:
        """Publish messages, and wait until the server has confirmed them.

        Raises:
            ConnectionError: The connection has ended.
        """
        await _wait_answered(self.begin(messages))

    def check(self) -> None:
        """Check that the connection is open.

        Raises:
            ConnectionError: The connection has ended.
        """
        if self._reading is not None and self._reading.done():
            raise ConnectionError("the connection has ended")

    def _ping(self, published: list[Publication]) -> asyncio.Future[None]:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unanswered.append((published, answered))
        self._writer.write(b"PING\r\n")
        return answered

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            async for line in self._reader:
                if line.startswith(b"PONG"):
                    self._confirm()
                elif line.startswith(b"PING"):
                    self._writer.write(b"PONG\r\n")
                elif line.startswith(b"-ERR"):
                    break
        for _, answered in self._unanswered:
            answered.cancel()
        self._writer.close()

    def _confirm(self) -> None:
        published, answered = self._unanswered.popleft()
        now = time.monotonic()
        for publication in published:
            publication.confirmed = now
        answered.set_result(None)


async def _wait_answered(future: asyncio.Future[None]) -> None:
    await asyncio.wait({future})
    if future.cancelled():
        raise ConnectionError("the connection has ended")


def _line(message: Message, data: bytes) -> bytes:
    size = len(message.headers) + len(data)
    if message.headers:
        return b"HPUB %b %d %d\r\n%b%b\r\n" % (message.subject, len(message.headers), size, message.headers, data)
    return b"PUB %b %d\r\n%b\r\n" % (message.subject, size, data)


def _decoded(subject: bytes) -> str | None:
    try:
        return subject.decode()
    except UnicodeDecodeError:
        return None
