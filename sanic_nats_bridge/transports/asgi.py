"""Transports for clients of an ASGI server, which gives no asyncio transport to write to.

Each has one bounded queue, and one task that sends the queued data as fast as the server accepts it.

No other module uses private parts of Sanic's ASGI support: ``send`` and ``receive`` of its MockTransport, ``_send`` of
that, through which uvicorn's transport is found, and the ``stage`` of a request's stream.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Any, ClassVar, Self, cast

from sanic import HTTPResponse, Request
from sanic.exceptions import WebsocketClosed
from sanic.http.constants import Stage

from ..errors import CloseCode
from ..log_limits import limited_logger
from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Close, Frame
from ..settings import Settings
from .base import CLOSED_WITHOUT_CODE, TransportListener
from .tcp import set_user_timeout

__all__ = ["AsgiSseTransport", "AsgiWebSocketTransport"]

logger = limited_logger()

_PART_BYTES = 65_536  # the high-water mark of the servers themselves
_EVENT_END = b"\n\n"


class _AsgiTransport(ABC):
    wire_format: ClassVar[WireFormat]
    reports_pending = True

    def __init__(self, request: Request, settings: Settings) -> None:
        self._listener: TransportListener | None = None
        self.written = 0
        self.pending = 0
        self.close_code = CLOSED_WITHOUT_CODE
        """The close code of the client; 1006 for an event stream, which has no close codes."""
        self._server = cast(Any, request.transport)
        self._high_water, self._low_water = settings.high_water_bytes, settings.low_water_bytes
        self._writing_paused = False
        self._queue: deque[bytes | memoryview] = deque()
        self._queue_filled = asyncio.Event()
        self._close_frame: Close | None = None
        """The last frame, once it is queued."""
        self._ended = False
        self._handler: asyncio.Timeout | None = None
        self._writer: asyncio.Task[None] | None = None
        self._transport = _server_transport(self._server)
        if self._transport is not None:
            set_user_timeout(self._transport, settings.write_timeout)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Run the writer while the handler is in this context. The end of the connection ends the handler."""
        self._writer = asyncio.create_task(self._write_loop())
        try:
            async with asyncio.timeout(None) as self._handler:
                yield self
                if self._close_frame is not None and not self._ended:
                    await self._writer
        except asyncio.CancelledError:
            # The server cancels handlers at the end of its graceful shutdown. This one ends normally, because Sanic's
            # ASGI WebSocket lacks a method that Sanic calls for a cancelled handler.
            pass
        except TimeoutError:
            if not self._ended:
                raise
        finally:
            self._handler = None
            self._end()

    def set_listener(self, listener: TransportListener | None) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        if self._ended or self._close_frame is not None:
            return
        self._queue.append(data)
        self._queue_filled.set()
        self.written += len(data)
        self.pending += len(data)
        if self.pending > self._high_water and not self._writing_paused:
            self._writing_paused = True
            if self._listener is not None:
                self._listener.pause_writing()

    def send(self, frame: Frame, retry: int | None = None) -> None:
        self.write(encoding.encode_frame(frame, self.wire_format, retry))

    def keepalive(self) -> None:  # noqa: B027 - not abstract
        """Do nothing, because an ASGI server never closes an unfinished response as idle."""

    def close(self, frame: Close, timeout: float) -> None:
        if CloseCode(frame.code).drops_pending:
            self._drop_queue()
        self.send(frame, frame.retry if isinstance(frame.retry, int) else None)
        self._close_frame = frame
        asyncio.get_running_loop().call_later(timeout, self.abort)

    def _drop_queue(self) -> None:
        """Drop the queued data. Data that the server has accepted may still be sent."""
        dropped, self._queue = self._queue, deque()
        self._uncount(sum(map(len, dropped)))

    def _uncount(self, size: int) -> None:
        self.written -= size
        self.pending -= size

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end()

    async def _write_loop(self) -> None:
        try:
            while self._close_frame is None or self._queue:
                while self._queue:
                    await self._send_next()
                if self._close_frame is None:
                    self._queue_filled.clear()
                    await self._queue_filled.wait()
            await self._send_end(self._close_frame)
        except Exception:
            # Each server raises its own exception for a disconnected client.
            logger.debug("The ASGI server accepts no more data for a client", exc_info=True)
            self._end()

    @abstractmethod
    async def _send_next(self) -> None:
        """Send some of the queued data to the server."""

    @abstractmethod
    async def _send_end(self, frame: Close) -> None:
        """Close the connection as the protocol prescribes."""

    def _accepted(self, size: int) -> None:
        """Count bytes that the server has accepted."""
        self.pending -= size
        if self._writing_paused and self.pending <= self._low_water:
            self._writing_paused = False
            if self._listener is not None:
                self._listener.resume_writing()

    def _end(self) -> None:
        """End the session, the writer and the handler, because the connection has ended."""
        if self._ended:
            return
        self._ended = True
        self._queue.clear()
        self.pending = 0
        if self._writer is not None:
            self._writer.cancel()
        if self._handler is not None:
            self._handler.reschedule(0)
        if self._listener is not None:
            self._listener.connection_lost(self.close_code)


class AsgiWebSocketTransport(_AsgiTransport):
    """The transport of a client of ``/stream``."""

    wire_format = WireFormat.JSON_LINES

    def __init__(self, request: Request, settings: Settings) -> None:
        super().__init__(request, settings)
        self._messages: deque[tuple[str, int]] = deque()
        """The messages of the write that is being sent, with their sizes."""

    async def recv(self) -> str | bytes:
        """Return the next message of the client.

        Raises:
            WebsocketClosed: The client has closed the connection.
        """
        # Not by Sanic's `recv`, which doesn't return the close code.
        while (event := await self._server.receive())["type"] != "websocket.disconnect":
            if event["type"] == "websocket.receive":
                text: str | None = event.get("text")
                return cast(bytes, event["bytes"]) if text is None else text
        self.close_code = event.get("code") or CLOSED_WITHOUT_CODE
        self._end()
        raise WebsocketClosed

    async def _send_next(self) -> None:
        self._messages.extend(_split_messages(cast(bytes, self._queue.popleft())))
        while self._messages:
            text, size = self._messages.popleft()
            await self._server.send({"type": "websocket.send", "text": text})
            self._accepted(size)

    def _drop_queue(self) -> None:
        super()._drop_queue()
        self._uncount(sum(size for _, size in self._messages))
        self._messages.clear()

    async def _send_end(self, frame: Close) -> None:
        # Not by `close` of Sanic's ASGI WebSocket, which does nothing. The handler reads on for the closing handshake.
        await self._server.send({"type": "websocket.close", "code": frame.code, "reason": frame.reason})


class AsgiSseTransport(_AsgiTransport):
    """The transport of a client of ``/events`` whose response has begun."""

    wire_format = WireFormat.EVENTS

    def __init__(self, request: Request, response: HTTPResponse, settings: Settings) -> None:
        super().__init__(request, settings)
        self._stream = cast(Any, request.stream)
        self._response = response

    def abort(self) -> None:
        """Close the connection at once, unless it already serves another request."""
        if not self._ended:
            super().abort()

    async def wait_finished(self) -> None:
        """Wait until the session has ended or the client has disconnected."""
        while (await self._server.receive())["type"] != "http.disconnect":
            pass
        self._end()

    async def _send_next(self) -> None:
        parts: list[bytes | memoryview] = []
        room = _PART_BYTES
        while self._queue and room:
            part = self._queue.popleft()
            if len(part) > room:
                # As a view, because the same bytes are queued for other clients.
                view = memoryview(part)
                self._queue.appendleft(view[room:])
                part = view[:room]
            parts.append(part)
            room -= len(part)
        await self._response.send(b"".join(parts))
        self._accepted(_PART_BYTES - room)

    def _drop_queue(self) -> None:
        rest = _rest_of_event(self._queue[0]) if self._queue else b""
        super()._drop_queue()
        if rest:
            self._queue.append(rest)
            self._uncount(-len(rest))

    async def _send_end(self, frame: Close) -> None:
        await self._response.send(end_stream=True)
        self._end()

    def _end(self) -> None:
        # Otherwise Sanic ends the response after the handler, and waits for a client that may receive nothing.
        self._stream.stage = Stage.IDLE
        super()._end()


def _rest_of_event(part: bytes | memoryview) -> bytes:
    """Return the rest of an event that was sent in part. Without it, the next event would become part of this one."""
    if isinstance(part, bytes):
        return b""
    # The last two sent bytes are included, because they may be the beginning of the empty line that ends an event.
    whole = cast(bytes, part.obj)
    rest, end, _ = whole[len(whole) - len(part) - len(_EVENT_END) :].partition(_EVENT_END)
    return (rest + end)[len(_EVENT_END) :]


@lru_cache(maxsize=8)
def _split_messages(lines: bytes) -> list[tuple[str, int]]:
    """Return the JSON documents of one write, with their sizes. Cached, because many clients get the same bytes."""
    return [(line.decode(), len(line) + 1) for line in lines.splitlines()]


def _server_transport(server: Any) -> Any:
    """Return the server's asyncio transport, or ``None`` if the server doesn't expose it.

    Without it, data that the server has accepted waits until the kernel's own timeout.
    """
    transport = getattr(getattr(server._send, "__self__", None), "transport", None)
    return transport if callable(getattr(transport, "abort", None)) else None
