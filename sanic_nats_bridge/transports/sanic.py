"""Transports for clients of Sanic's own HTTP/1.1 server, which write to the asyncio transport directly.

The write buffer of the asyncio transport is the client's queue. All frames of a session must go through one object of
this module. Sanic's ``send`` waits while the buffer is full, so direct writes would overtake it.

Only this module and `responses` use private parts of Sanic's server: ``io_proto``, ``ws_proto``, ``assembler``,
``recv_cancel``, ``resume_frames``, ``keepalive_ping_task``, ``data_received``, ``eof_received``,
``process_events``, ``fail_connection`` and the ping settings of its WebSocket; ``fail``, ``debug``, ``parser``,
``reader`` and ``close_rcvd`` of the `websockets` protocol below it; ``_can_write``, ``_data_received``, ``_time``,
``recv_buffer`` and ``_callback_check_timeouts`` of its protocols; ``expecting_continue``, ``keep_alive``,
``request_body``, ``response_func``, ``stage``, ``protocol``, ``recv_buffer`` and ``log_response`` of its HTTP/1
connection.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self, cast

from sanic import HTTPResponse, Request, Websocket
from sanic.headers import format_http1_response
from sanic.http.constants import Stage
from websockets.frames import Opcode

from ..errors import CloseCode
from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Close, Frame
from ..settings import Settings
from .assembler import MessageAssembler
from .base import CLOSE_SECONDS, CLOSED_WITHOUT_CODE, TransportListener
from .compatibility import awaits_frame
from .input_limits import SMALL_BYTES
from .read_throttle import ReadThrottle
from .responses import discarding_body
from .tcp import has_unacknowledged_data, set_user_timeout

__all__ = ["SanicHttp10SseTransport", "SanicSseTransport", "SanicWebSocketTransport", "begin_http10_stream"]

_TEXT = Opcode.TEXT  # in Python 3.11, looking it up takes longer than several calls
_PING = b"\x89\x00"
_INVALID_DATA = 1007
_MAX_FRAMES_WITHOUT_SESSION = 100
_CLIENT_ERRORS = (1002, _INVALID_DATA, CloseCode.TOO_BIG)
_MAX_PIPELINED_BYTES = 16_384
_SANIC_WATER_BYTES = {"high": 65_536, "low": 16_384}


class _WriteGate:
    """Replacement for the event that Sanic's protocol clears and sets when the write buffer crosses its marks."""

    __slots__ = ("_drained", "_owner")

    def __init__(self, transport: "_SanicTransport") -> None:
        self._owner = transport
        self._drained: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self._drained is None

    async def wait(self) -> None:
        if self._drained is not None:
            await self._drained.wait()

    def clear(self) -> None:
        if self._drained is None:
            self._drained = asyncio.Event()
            self._owner.pause_writing()

    def set(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set()
            self._owner.resume_writing()


class _PipelineGate(asyncio.Event):
    """Replacement for the event that Sanic's protocol sets when it has received data, while a response is streamed.

    Requests behind that of the stream would wait in Sanic's buffer. A few may.
    """

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection

    def set(self) -> None:
        super().set()
        connection = self._connection
        if len(connection.recv_buffer) > _MAX_PIPELINED_BYTES and not connection.request_body:
            connection.keep_alive = False
            connection.recv_buffer.clear()
            # So that the end of the connection is noticed.
            connection.protocol.transport.resume_reading()


class _SanicTransport:
    __slots__ = ("_listener", "_transport", "reports_pending", "written")

    wire_format: ClassVar[WireFormat]

    def __init__(self, protocol: Any, settings: Settings) -> None:
        self._transport: asyncio.Transport = protocol.transport
        self._listener: TransportListener | None = None
        self.written = 0
        # A TLS transport doesn't count the bytes in the transport below it.
        self.reports_pending = self._transport.get_extra_info("sslcontext") is None
        protocol._can_write = _WriteGate(self)
        self._transport.set_write_buffer_limits(high=settings.high_water_bytes, low=settings.low_water_bytes)
        set_user_timeout(self._transport, settings.write_timeout)

    @property
    def pending(self) -> int:
        return self._transport.get_write_buffer_size()

    def set_listener(self, listener: TransportListener | None) -> None:
        self._listener = listener

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            self._transport.write(data)
        except RuntimeError:
            # The transport is half-closed: Sanic does that some turns of the loop before it closes a WebSocket.
            return
        self.written += len(data)

    def send(self, frame: Frame, retry: int | None = None) -> None:
        self.write(encoding.encode_frame(frame, self.wire_format, retry))

    def abort(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        if self._listener is not None:
            self._listener.pause_writing()

    def resume_writing(self) -> None:
        if self._listener is not None:
            self._listener.resume_writing()


class SanicWebSocketTransport(_SanicTransport):
    """The transport of a client of ``/stream``."""

    __slots__ = (
        "_assembler",
        "_closing",
        "_fail",
        "_frames_without_session",
        "_ping_answered",
        "_pinged_at",
        "_process_events",
        "_protocol",
        "_throttle",
        "_websocket",
    )  # fmt: skip

    wire_format = WireFormat.WEBSOCKET

    def __init__(self, websocket: Websocket, settings: Settings) -> None:
        self._websocket = cast(Any, websocket)
        transport = self._websocket.io_proto.transport
        self._throttle = ReadThrottle(transport, self._websocket.eof_received)
        self._assembler = MessageAssembler(
            self._throttle,
            settings.max_command_bytes,
            settings.read_timeout,
            self._websocket.data_received,
            self._websocket.fail_connection,
        )
        # A method in between would cost a call per read.
        self._throttle.feed = self._assembler.data_received
        super().__init__(self._websocket.io_proto, settings)
        # The timer does nothing for a WebSocket, but would keep a closed connection in memory for half a minute.
        self._websocket.io_proto._callback_check_timeouts.cancel()
        # Sanic's pings would disconnect a slow client, whose pong is delayed by its pending bytes. `keepalive` pings.
        if self._websocket.keepalive_ping_task is not None:
            self._websocket.keepalive_ping_task.cancel()
            self._websocket.keepalive_ping_task = None
        self._pinged_at = asyncio.get_running_loop().time()
        self._ping_answered = True
        self._frames_without_session = 0
        """The number of frames received before the session or after it."""
        is_between_messages = _is_between_messages(self._websocket)
        self._replace_assembler()
        self._closing: asyncio.Task[None] | None = None
        self._protocol = self._websocket.ws_proto
        # Otherwise it logs the client's frames at DEBUG level.
        self._protocol.debug = False
        self._fail = self._protocol.fail
        self._protocol.fail = self._on_fail
        self._process_events = self._websocket.process_events
        self._websocket.process_events = self._process_valid_events
        if not is_between_messages:
            # The limits need the header of each frame.
            self._websocket.fail_connection(CloseCode.TRY_AGAIN_LATER, "A message came before the handshake was done")

    def _replace_assembler(self) -> None:
        """Replace Sanic's assembler, and take over the message that waits in it."""
        self._websocket.data_received = self._throttle.data_received
        self._websocket.eof_received = self._throttle.eof_received
        assembler = self._websocket.assembler
        self._websocket.assembler = self._websocket.recv_cancel = self._assembler
        # A message may wait if a handler of Sanic's signal "websocket.handler.before" has awaited.
        if assembler.message_complete.is_set():
            self._assembler.add(("" if assembler.decoder else b"").join(assembler.chunks))
            assembler.message_complete.clear()
            assembler.message_fetched.set()
            self._websocket.resume_frames()

    async def recv(self) -> str | bytes:
        """Return the next message of the client.

        Raises:
            WebsocketClosed: The client has closed the connection.
            SizeLimitExceeded: The message is too large. No other follows it.
        """
        return await self._assembler.get()

    def pause_writing(self) -> None:
        """Pause reading, and notify the listener."""
        self._assembler.pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Resume reading, and notify the listener."""
        self._assembler.resume()
        super().resume_writing()

    def keepalive(self) -> None:
        """Ping the client by Sanic's ping settings, and close the connection if it doesn't answer.

        While bytes are pending no answer is due, because the ping comes after them. `Keepalive` detects a client that
        accepts no bytes.
        """
        interval, timeout = self._websocket.ping_interval, self._websocket.ping_timeout
        now = asyncio.get_running_loop().time()
        if not interval or self.pending or not self._transport.is_reading():
            self._pinged_at = now
        elif self._ping_answered or timeout is None:
            if now - self._pinged_at >= interval:
                self._pinged_at, self._ping_answered = now, False
                self._ping()
        elif timeout is not None and now - self._pinged_at >= timeout:
            if has_unacknowledged_data(self._transport):
                self._pinged_at = now
            else:
                self._websocket.fail_connection(CloseCode.INTERNAL, "No answer to a ping")

    def _ping(self) -> None:
        with contextlib.suppress(RuntimeError):  # half-closed, as in `write`
            self._transport.write(_PING)

    def close(self, frame: Close, timeout: float) -> None:
        """Write the last frame, and begin the closing handshake. Abort the connection after ``timeout`` seconds."""
        self.send(frame)
        # The handler reads on, so that the closing handshake can complete (RFC 6455, section 7.1).
        self._closing = asyncio.create_task(self._websocket.close(frame.code, frame.reason))
        asyncio.get_running_loop().call_later(timeout, self.abort)

    @property
    def close_code(self) -> int:
        """The close code of the client."""
        # Not the protocol's `close_code`, which is set only when the connection has ended.
        received = self._protocol.close_rcvd
        return CLOSED_WITHOUT_CODE if received is None else int(received.code)

    def _on_fail(self, code: int, reason: str = "") -> None:
        """Send a close frame of the bridge's own protocol before Sanic or `websockets` fails the connection."""
        self._throttle.drop()
        self._assembler.release()
        if code != CLOSED_WITHOUT_CODE and self._listener is not None:
            self._listener.connection_lost(int(code))
            self.send(Close(code=int(code), reason=reason, reconnect=code not in _CLIENT_ERRORS))
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)
        self._fail(code, reason)

    async def _process_valid_events(self, events: Any) -> None:
        self._ping_answered = True  # any frame counts
        for event in events:
            if self._listener is None:
                self._frames_without_session += 1
            elif event.opcode is not _TEXT and _costs_as_much_as_a_command(event):
                self._listener.control_frame_received()
        if self._frames_without_session > _MAX_FRAMES_WITHOUT_SESSION:
            self._assembler.stop()  # because parsing more frames would delay other clients
        try:
            await self._process_events(events)
        except UnicodeDecodeError:
            # Sanic would ignore the error and stop reading. RFC 6455, section 8.1, requires a failure with 1007.
            self._websocket.fail_connection(_INVALID_DATA, "A text frame must be UTF-8")


class SanicSseTransport(_SanicTransport):
    """The transport of a client of ``/events`` whose response has begun."""

    __slots__ = ("_finished", "_protocol", "_request")

    wire_format = WireFormat.EVENT_STREAM

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._protocol = cast(Any, request.transport).get_protocol()
        super().__init__(self._protocol, settings)
        self._protocol._data_received = _PipelineGate(request.stream)
        self._finished = asyncio.Event()
        self.keepalive()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Self]:
        """Discard the body of the request, if it has one, while the handler is in this context."""
        async with discarding_body(self._request.stream):
            yield self

    def keepalive(self) -> None:
        """Keep Sanic from cancelling the response as idle."""
        # Sanic cancels a response after RESPONSE_TIMEOUT without a send of its protocol. Direct writes don't count.
        self._protocol._time = math.inf

    def close(self, frame: Close, timeout: float) -> None:
        """Write the last frame, and make the handler end the stream. Abort the connection after ``timeout`` seconds."""
        self.send(frame, frame.retry if isinstance(frame.retry, int) else None)
        self._finished.set()
        asyncio.get_running_loop().call_later(timeout, self._abort_if_stuck)

    @property
    def close_code(self) -> int:
        """1006, because an event stream has no close codes."""
        return CLOSED_WITHOUT_CODE

    async def wait_finished(self) -> None:
        """Wait until the session has ended, then restore the connection's settings for Sanic."""
        await self._finished.wait()
        self._transport.set_write_buffer_limits(**_SANIC_WATER_BYTES)
        self._protocol._data_received = asyncio.Event()
        self._protocol._time = time.monotonic()

    def _abort_if_stuck(self) -> None:
        # Sanic removes the stream of a completed request. The connection may serve another request then.
        if self._request.stream is not None:
            self.abort()


class SanicHttp10SseTransport(SanicSseTransport):
    """The transport of an HTTP/1.0 client of ``/events``, whose response ends with the connection."""

    __slots__ = ()

    wire_format = WireFormat.EVENTS


async def begin_http10_stream(request: Request, response: HTTPResponse) -> None:
    """Send the head of a response that ends with the connection.

    Sanic would send chunks, which an HTTP/1.0 client doesn't know (RFC 9112, section 6.1).
    """
    connection = cast(Any, request.stream)
    connection.keep_alive = False
    # It must ignore an Expect header (RFC 9110, section 10.1.1). Sanic would send "100 Continue" between the events.
    connection.expecting_continue = False
    response.headers["connection"] = "close"
    if connection.protocol.access_log:
        connection.log_response()
    await connection.protocol.send(format_http1_response(response.status, response.processed_headers))
    connection.stage = Stage.RESPONSE

    async def send(data: bytes, end_stream: bool) -> None:
        if data:
            await connection.protocol.send(data)
        if end_stream:
            connection.response_func = None
            connection.stage = Stage.IDLE
            # The client waits for the end of the connection, even if its request has no end.
            connection.request_body = None

    connection.response_func = send


def _is_between_messages(websocket: Any) -> bool:
    """Return whether Sanic has read no part of a message that is incomplete."""
    protocol, assembler = websocket.ws_proto, websocket.assembler
    between_frames = awaits_frame(protocol.parser) and not protocol.reader.buffer
    return between_frames and (assembler.message_complete.is_set() or not assembler.chunks)


def _costs_as_much_as_a_command(event: Any) -> bool:
    """Return whether a frame is a ping, a pong or a small fragment, which a client could send without limit."""
    return event.opcode in (Opcode.PING, Opcode.PONG) or (event.opcode is Opcode.CONT and len(event.data) < SMALL_BYTES)
