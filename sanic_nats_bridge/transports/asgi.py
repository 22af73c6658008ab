"""The ways to clients where the server gives no transport to write to: those of an ASGI server.

Each has one bounded queue, and one task that hands over what waits there, as fast as the server takes it.
The only file that touches private parts of Sanic's ASGI side: ``send`` and ``receive`` of its stand-in for
a transport; ``_send`` of that, which leads to the transport of uvicorn; and the ``stage`` of a request's stream.
"""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any, ClassVar, Final, Self, cast

from sanic import HTTPResponse, Request
from sanic.exceptions import WebsocketClosed
from sanic.http.constants import Stage

from ..errors import CloseCode
from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Close, Frame
from ..settings import Settings
from .base import CLOSED_WITHOUT_CODE, TransportListener
from .tcp import bound_silence

__all__ = ["AsgiSseTransport", "AsgiWebSocketTransport"]

logger = logging.getLogger("sanic.root.nats_bridge")

_PART_BYTES: Final = 65_536  # what servers themselves let wait
_EVENT_END: Final = b"\n\n"


class _AsgiTransport(ABC):
    wire_format: ClassVar[WireFormat]
    reports_pending = True

    def __init__(self, request: Request, settings: Settings) -> None:
        self._listener: TransportListener | None = None
        self.written = 0
        self.pending = 0
        self.close_code = CLOSED_WITHOUT_CODE
        """The code that the client has closed with; 1006 for an event stream, whose client leaves without one."""
        self._server = cast(Any, request.transport)
        self._high_water, self._low_water = settings.high_water_bytes, settings.low_water_bytes
        self._full = False
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = asyncio.Event()
        self._last: Close | None = None
        self._over = False
        self._handler: asyncio.Timeout | None = None
        self._writer: asyncio.Task[None] | None = None
        self._transport = _transport_behind(self._server)
        if self._transport is not None:
            bound_silence(self._transport, settings.write_timeout)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Write for as long as the handler is in here, which ends when the connection does."""
        self._writer = asyncio.create_task(self._write_on())
        try:
            async with asyncio.timeout(None) as self._handler:
                yield self
                if self._last is not None and not self._over:
                    await self._writer
        except asyncio.CancelledError:
            # From a server that has waited long enough for its clients. The handler ends in order all the
            # same: Sanic's ASGI WebSocket lacks what Sanic calls for one that was cancelled.
            pass
        except TimeoutError:
            if not self._over:
                raise
        finally:
            self._handler = None
            self._end()

    def set_listener(self, listener: TransportListener | None) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        if self._over or self._last is not None:
            return
        self._queue.append(data)
        self._queued.set()
        self.written += len(data)
        self.pending += len(data)
        if self.pending > self._high_water and not self._full:
            self._full = True
            if self._listener is not None:
                self._listener.pause_writing()

    def send(self, frame: Frame, retry: int | None = None) -> None:
        self.write(encoding.encode_frame(frame, self.wire_format, retry))

    def keepalive(self) -> None:  # noqa: B027 - no way needs more
        """Nothing: the server never takes for idle what has not ended."""

    def close(self, close: Close, seconds: float) -> None:
        if CloseCode(close.code).drops_pending:
            self._cut()
        self.send(close, close.retry if isinstance(close.retry, int) else None)
        self._last = close
        asyncio.get_running_loop().call_later(seconds, self.abort)

    def _cut(self) -> None:
        """Leave out what waits here; what the server has been given may still leave."""
        waiting, self._queue = self._queue, deque()
        self._leave_out(sum(map(len, waiting)))

    def _leave_out(self, size: int) -> None:
        self.written -= size
        self.pending -= size

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end()

    async def _write_on(self) -> None:
        try:
            while self._last is None or self._queue:
                while self._queue:
                    await self._send_next()
                if self._last is None:
                    self._queued.clear()
                    await self._queued.wait()
            await self._send_end(self._last)
        except Exception:
            # Each server has its own way to say that the client has gone.
            logger.debug("The server takes no more for a client", exc_info=True)
            self._end()

    @abstractmethod
    async def _send_next(self) -> None:
        """Hand the server some of what waits."""

    @abstractmethod
    async def _send_end(self, close: Close) -> None:
        """End the connection as its transport does."""

    def _taken(self, size: int) -> None:
        """The server has taken that many bytes of what waits."""
        self.pending -= size
        if self._full and self.pending <= self._low_water:
            self._full = False
            if self._listener is not None:
                self._listener.resume_writing()

    def _end(self) -> None:
        """The connection is over: end the session, the writer and the handler."""
        if self._over:
            return
        self._over = True
        self._queue.clear()
        self.pending = 0
        if self._writer is not None:
            self._writer.cancel()
        if self._handler is not None:
            self._handler.reschedule(0)
        if self._listener is not None:
            self._listener.connection_lost(self.close_code)


class AsgiWebSocketTransport(_AsgiTransport):
    """The way to a client of ``/stream``."""

    wire_format = WireFormat.JSON_LINES

    def __init__(self, request: Request, settings: Settings) -> None:
        super().__init__(request, settings)
        self._next: deque[tuple[str, int]] = deque()

    async def recv(self) -> str | bytes:
        """What the client has sent.

        Raises:
            WebsocketClosed: It will send nothing more.
        """
        # Sanic's own `recv` keeps the code of a close for itself.
        while (event := await self._server.receive())["type"] != "websocket.disconnect":
            if event["type"] == "websocket.receive":
                text: str | None = event.get("text")
                return cast(bytes, event["bytes"]) if text is None else text
        self.close_code = event.get("code") or CLOSED_WITHOUT_CODE
        self._end()
        raise WebsocketClosed

    async def _send_next(self) -> None:
        self._next.extend(_texts(cast(bytes, self._queue.popleft())))
        while self._next:
            text, size = self._next.popleft()
            await self._server.send({"type": "websocket.send", "text": text})
            self._taken(size)

    def _cut(self) -> None:
        super()._cut()
        self._leave_out(sum(size for _, size in self._next))
        self._next.clear()

    async def _send_end(self, close: Close) -> None:
        # The `close` of Sanic's ASGI WebSocket does nothing. The handler reads on, for the closing handshake.
        await self._server.send({"type": "websocket.close", "code": close.code, "reason": close.reason})


class AsgiSseTransport(_AsgiTransport):
    """The way to a client of ``/events``, once its response has begun."""

    wire_format = WireFormat.EVENTS

    def __init__(self, request: Request, response: HTTPResponse, settings: Settings) -> None:
        super().__init__(request, settings)
        self._stream = cast(Any, request.stream)
        self._response = response

    def abort(self) -> None:
        """End the connection at once, unless it serves another request by now."""
        if not self._over:
            super().abort()

    async def wait_finished(self) -> None:
        """Wait until the session has ended, or the client has gone."""
        while (await self._server.receive())["type"] != "http.disconnect":
            pass
        self._end()

    async def _send_next(self) -> None:
        parts: list[bytes | memoryview] = []
        room = _PART_BYTES
        while self._queue and room:
            part = self._queue.popleft()
            if len(part) > room:
                # A view: the same bytes wait for other clients too.
                view = memoryview(part)
                self._queue.appendleft(view[room:])
                part = view[:room]
            parts.append(part)
            room -= len(part)
        await self._response.send(b"".join(parts))
        self._taken(_PART_BYTES - room)

    def _cut(self) -> None:
        rest = _rest_of_event(self._queue[0]) if self._queue else b""
        super()._cut()
        if rest:
            self._queue.append(rest)
            self._leave_out(-len(rest))

    async def _send_end(self, close: Close) -> None:
        await self._response.send(end_stream=True)
        self._end()

    def _end(self) -> None:
        # Sanic would end the response behind the handler, and wait for a client that takes nothing.
        self._stream.stage = Stage.IDLE
        super()._end()


def _rest_of_event(part: bytes | memoryview) -> bytes:
    """What is missing of an event that was handed over in part: without it the next one would be a piece of it."""
    if isinstance(part, bytes):
        return b""
    # From the end of what was handed over on, which may stand within the empty line that ends an event.
    whole = cast(bytes, part.obj)
    last, end, _ = whole[len(whole) - len(part) - len(_EVENT_END) :].partition(_EVENT_END)
    return (last + end)[len(_EVENT_END) :]


@lru_cache(maxsize=8)
def _texts(lines: bytes) -> list[tuple[str, int]]:
    """The JSON documents in what was written at once, with their sizes: the same for many clients."""
    return [(line.decode(), len(line) + 1) for line in lines.splitlines()]


def _transport_behind(server: Any) -> Any:
    """The transport of the connection, where the server shows one.

    Where it does not, what the server has accepted waits for as long as the kernel lets it.
    """
    transport = getattr(getattr(server._send, "__self__", None), "transport", None)
    return transport if callable(getattr(transport, "abort", None)) else None
