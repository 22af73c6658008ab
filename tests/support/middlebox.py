"""Middleboxes between a browser and the bridge: networks that don't let everything through."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Literal, TypeAlias

from tests.support.bridge import until
from tests.support.raw import reset

Habit: TypeAlias = Literal["pass", "refuse", "cut", "swallow", "buffer"]
"""Handling of WebSockets: refuse the upgrade, cut them after it, or swallow the request.

"buffer" lets them through, and holds event streams until they end.
"""

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_REQUEST = re.compile(rb"[A-Z]+ (/[^ ?]*)")
_REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Middlebox:
    """A TCP proxy before a server on this machine."""

    def __init__(self, port: int, habit: Habit = "pass") -> None:
        self._upstream = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.habit = habit
        self.down = False
        """True if new connections are reset."""
        self.silent = False
        """True if all data is dropped silently."""
        self.streams = 0
        """Requests for an event stream that it has seen."""
        self.paths: list[str] = []
        """Paths of the requests, in their order."""
        self.missing = ""
        """A path that is answered with 404."""
        self.url = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, port: int, habit: Habit = "pass", own_port: int = 0) -> AsyncIterator["Middlebox"]:
        box = cls(port, habit)
        server = await asyncio.start_server(box._serve, "127.0.0.1", own_port)
        box.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield box
        finally:
            server.close()
            box.down = True  # also for connections that are being opened
            box.cut()
            await until(lambda: not box._writers)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            if not writer.is_closing():
                reset(writer.transport)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            reset(writer.transport)
            return
        upstream, other = await asyncio.open_connection("127.0.0.1", self._upstream)
        if self.down:
            reset(writer.transport)
            reset(other.transport)
            return
        connection = _Connection(self, writer, other)
        self._writers |= {writer, other}
        await asyncio.gather(connection.up(reader), connection.down(upstream))
        self._writers -= {writer, other}


class _Connection:
    def __init__(self, box: Middlebox, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._box = box
        self._client = client
        self._server = server
        self._upgrading = self._held = False

    async def up(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._box.silent or self._stopped(data):
                    continue
                self._server.write(data)
        self._server.close()

    async def down(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._box.silent or self._held:
                    continue
                if self._upgrading and self._box.habit == "cut":
                    self._client.write(data[: data.index(b"\r\n\r\n") + 4])
                    break
                self._client.write(data)
        self._client.close()

    def _stopped(self, data: bytes) -> bool:
        """Note a request; whether it goes no further."""
        habit = self._box.habit
        if request := _REQUEST.match(data):
            self._box.paths.append(path := request[1].decode())
            if path == self._box.missing:
                self._client.write(_NOT_FOUND)
                return True
        if data.startswith(b"GET /nats/events"):
            self._box.streams += 1
            self._held = habit == "buffer"
        self._upgrading = data.startswith(b"GET /nats/stream")
        if self._upgrading and habit == "refuse":
            self._client.write(_REFUSAL)
            self._client.close()
        return self._upgrading and habit in ("refuse", "swallow")
