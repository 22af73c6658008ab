"""A proxy between browsers and a bridge that notes the requests, and that a test can interrupt."""

import asyncio
import contextlib
import re
from typing import Literal, TypeAlias

from tools.harness.tcp_proxy import READ_BYTES, Proxy, Stream

Habit: TypeAlias = Literal["pass", "refuse", "cut", "swallow", "buffer"]
"""Handling of WebSockets: refuse the upgrade, cut them after it, or swallow the request.

"buffer" lets them through, and holds event streams until they end.
"""

_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_REQUEST = re.compile(rb"[A-Z]+ (/[^ ?]*)")
_REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class BridgeProxy(Proxy):
    """A TCP proxy before a bridge on this machine.

    It passes bytes unchanged, as long as its habit and the test allow it. What changes HTTP messages, or limits their
    rate, is `tools.proxies.middlebox`.
    """

    def __init__(self, target: int, habit: Habit = "pass") -> None:
        super().__init__(target)
        self.habit = habit
        self.silent = False
        """True if all data is dropped silently."""
        self.streams = 0
        """Requests for an event stream that it has seen."""
        self.paths: list[str] = []
        """Paths of the requests, in their order."""
        self.missing = ""
        """A path that is answered with 404."""

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    async def _forward(self, client: Stream, target: Stream) -> None:
        connection = _Connection(self, client.writer, target.writer)
        await asyncio.gather(connection.up(client.reader), connection.down(target.reader))


class _Connection:
    def __init__(self, proxy: BridgeProxy, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._upgrading = self._held = False

    async def up(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if self._proxy.silent or self._stopped(data):
                    continue
                self._server.write(data)
        self._server.close()

    async def down(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                if self._proxy.silent or self._held:
                    continue
                if self._upgrading and self._proxy.habit == "cut":
                    self._client.write(data[: data.index(b"\r\n\r\n") + 4])
                    break
                self._client.write(data)
        self._client.close()

    def _stopped(self, data: bytes) -> bool:
        """Note a request, and return True if it goes no further."""
        habit = self._proxy.habit
        if request := _REQUEST.match(data):
            self._proxy.paths.append(path := request[1].decode())
            if path == self._proxy.missing:
                self._client.write(_NOT_FOUND)
                return True
        if data.startswith(b"GET /nats/events"):
            self._proxy.streams += 1
            self._held = habit == "buffer"
        self._upgrading = data.startswith(b"GET /nats/stream")
        if self._upgrading and habit == "refuse":
            self._client.write(_REFUSAL)
            self._client.close()
        return self._upgrading and habit in ("refuse", "swallow")
