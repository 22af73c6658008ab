"""The ways to clients of Sanic's own HTTP/1.1 server: straight to the transport.

The transport's write buffer is the client's queue, and every frame of a session leaves by its one
outlet: Sanic's ``send`` waits while the buffer is full, and direct writes would overtake it. The only
file that touches private parts of Sanic's server: ``io_proto``, ``ws_proto``, ``assembler``,
``recv_cancel``, ``resume_frames``, ``keepalive_ping_task``, ``data_received``, ``eof_received``,
``process_events``, ``fail_connection`` and the ping settings of its WebSocket; ``fail``, ``debug`` and
``close_rcvd`` of that of `websockets` below; ``_can_write``, ``_time`` and ``_callback_check_timeouts`` of
its protocols.
"""

import asyncio
import contextlib
import math
import time
from typing import Any, ClassVar, Final, cast

from sanic import Request, Websocket
from websockets.frames import Opcode

from ..errors import CloseCode
from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Close, Frame
from ..settings import Settings
from .assembler import MessageAssembler
from .base import CLOSE_SECONDS, CLOSED_WITHOUT_CODE, TransportListener
from .read_throttle import ReadThrottle
from .tcp import bound_silence, unacknowledged

__all__ = ["SanicSseTransport", "SanicWebSocketTransport"]

_PING: Final = b"\x89\x00"
_INVALID_DATA: Final = 1007
_MAX_UNWATCHED_FRAMES: Final = 100
_FAULTS_OF_THE_CLIENT: Final = (1002, _INVALID_DATA, CloseCode.TOO_BIG)
_SANIC_WATER_BYTES: Final = {"high": 65_536, "low": 16_384}


class _WriteGate:
    """Stands in for the event that Sanic's protocol clears and sets as the transport's buffer passes its marks."""

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


class _SanicTransport:
    __slots__ = ("_listener", "_transport", "reports_pending", "written")

    wire_format: ClassVar[WireFormat]

    def __init__(self, protocol: Any, settings: Settings) -> None:
        self._transport: asyncio.Transport = protocol.transport
        self._listener: TransportListener | None = None
        self.written = 0
        # A TLS transport does not count what waits in the one below it.
        self.reports_pending = self._transport.get_extra_info("sslcontext") is None
        protocol._can_write = _WriteGate(self)
        self._transport.set_write_buffer_limits(high=settings.high_water_bytes, low=settings.low_water_bytes)
        bound_silence(self._transport, settings.write_timeout)

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
            # Sanic half-closes a WebSocket some turns of the loop before it closes it.
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
    """The way to a client of ``/stream``."""

    __slots__ = (
        "_answered",
        "_assembler",
        "_closing",
        "_fail",
        "_pinged_at",
        "_process_events",
        "_protocol",
        "_throttle",
        "_unwatched",
        "_websocket",
    )  # fmt: skip

    wire_format = WireFormat.WEBSOCKET

    def __init__(self, websocket: Websocket, settings: Settings) -> None:
        self._websocket = cast(Any, websocket)
        transport = self._websocket.io_proto.transport
        self._throttle = ReadThrottle(transport, self._websocket.data_received, self._websocket.eof_received)
        self._assembler = MessageAssembler(self._throttle, settings.max_command_bytes)
        super().__init__(self._websocket.io_proto, settings)
        # Does nothing for a WebSocket, but would keep a closed connection in memory for half a minute.
        self._websocket.io_proto._callback_check_timeouts.cancel()
        # It would close a slow client, whose pong comes behind all that waits for it: `keep` pings instead.
        if self._websocket.keepalive_ping_task is not None:
            self._websocket.keepalive_ping_task.cancel()
            self._websocket.keepalive_ping_task = None
        self._pinged_at = asyncio.get_running_loop().time()
        self._answered = True
        self._unwatched = 0
        self._take_over()
        self._closing: asyncio.Task[None] | None = None
        self._protocol = self._websocket.ws_proto
        # At DEBUG level it would write what the client sends into the log.
        self._protocol.debug = False
        self._fail = self._protocol.fail
        self._protocol.fail = self._failed
        self._process_events = self._websocket.process_events
        self._websocket.process_events = self._process_valid_events

    def _take_over(self) -> None:
        """Have what the client sends come into the inbox, from what waits in Sanic's assembler on."""
        self._websocket.data_received = self._throttle.data_received
        self._websocket.eof_received = self._throttle.eof_received
        assembler = self._websocket.assembler
        self._websocket.assembler = self._websocket.recv_cancel = self._assembler
        # A handler of Sanic's signal "websocket.handler.before" may have let the loop turn.
        if assembler.message_complete.is_set():
            self._assembler.add(("" if assembler.decoder else b"").join(assembler.chunks))
            assembler.message_complete.clear()
            assembler.message_fetched.set()
            self._websocket.resume_frames()

    async def recv(self) -> str | bytes:
        """The next message of the client.

        Raises:
            WebsocketClosed: It has closed.
        """
        return await self._assembler.get()

    def pause_writing(self) -> None:
        """Pass on that more waits for the client than may, and read no further from it."""
        self._assembler.hold()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has caught up, and read on."""
        self._assembler.release()
        super().resume_writing()

    def keepalive(self) -> None:
        """Ping the client as Sanic is configured to, and give it up when it does not answer.

        While anything waits for it no answer is due: the ping comes behind that, and `Keepalive` watches over it.
        """
        interval, timeout = self._websocket.ping_interval, self._websocket.ping_timeout
        now = asyncio.get_running_loop().time()
        if not interval or self.pending or not self._transport.is_reading():
            self._pinged_at = now
        elif self._answered or timeout is None:
            if now - self._pinged_at >= interval:
                self._pinged_at, self._answered = now, False
                self._ping()
        elif timeout is not None and now - self._pinged_at >= timeout:
            if unacknowledged(self._transport):
                self._pinged_at = now
            else:
                self._websocket.fail_connection(CloseCode.INTERNAL, "No answer to a ping")

    def _ping(self) -> None:
        with contextlib.suppress(RuntimeError):  # half-closed, as in `write`
            self._transport.write(_PING)

    def close(self, close: Close, seconds: float) -> None:
        """Write the last frame, and begin the closing handshake."""
        self.send(close)
        # The handler reads on, so that the closing handshake (RFC 6455, section 7.1) can end in order.
        self._closing = asyncio.create_task(self._websocket.close(close.code, close.reason))
        asyncio.get_running_loop().call_later(seconds, self.abort)

    @property
    def close_code(self) -> int:
        """The code that the client has closed with."""
        # Its own `close_code` is not there before the connection has ended.
        received = self._protocol.close_rcvd
        return CLOSED_WITHOUT_CODE if received is None else int(received.code)

    def _failed(self, code: int, reason: str = "") -> None:
        """Say why in a frame of ours too, where Sanic or `websockets` fails the connection, or it is lost."""
        self._throttle.drop()
        if code != CLOSED_WITHOUT_CODE and self._listener is not None:
            self._listener.connection_lost(int(code))
            self.send(Close(code=int(code), reason=reason, reconnect=code not in _FAULTS_OF_THE_CLIENT))
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)
        self._fail(code, reason)

    async def _process_valid_events(self, events: Any) -> None:
        self._answered = True  # whatever has come
        for event in events:
            if self._listener is None:
                self._unwatched += 1
            elif _is_endless(event):
                self._listener.control_frame_received()
        if self._unwatched > _MAX_UNWATCHED_FRAMES:
            self._assembler.shut()  # to take more apart would cost the others
        try:
            await self._process_events(events)
        except UnicodeDecodeError:
            # Sanic lets it go unseen, and never reads again (RFC 6455, section 8.1: fail with 1007).
            self._websocket.fail_connection(_INVALID_DATA, "A text frame must be UTF-8")


class SanicSseTransport(_SanicTransport):
    """The way to a client of ``/events``, once its response has begun."""

    __slots__ = ("_finished", "_protocol", "_request")

    wire_format = WireFormat.EVENT_STREAM

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._protocol = cast(Any, request.transport).get_protocol()
        super().__init__(self._protocol, settings)
        self._finished = asyncio.Event()
        self.keepalive()

    def keepalive(self) -> None:
        """Keep Sanic from taking the stream for idle."""
        # Sanic cancels a response when RESPONSE_TIMEOUT has passed since its protocol last sent;
        # what is written straight to the transport does not count there.
        self._protocol._time = math.inf

    def close(self, close: Close, seconds: float) -> None:
        """Write the last frame, and have the handler end the stream."""
        self.send(close, close.retry if isinstance(close.retry, int) else None)
        self._finished.set()
        asyncio.get_running_loop().call_later(seconds, self._abort_if_stuck)

    @property
    def close_code(self) -> int:
        """1006: the client of an event stream leaves without a code."""
        return CLOSED_WITHOUT_CODE

    async def wait_finished(self) -> None:
        """Wait until the session has ended, then hand the connection back to Sanic as it was."""
        await self._finished.wait()
        self._transport.set_write_buffer_limits(**_SANIC_WATER_BYTES)
        self._protocol._time = time.monotonic()

    def _abort_if_stuck(self) -> None:
        # Sanic takes the stream from a request that it is done with; then the connection serves another.
        if self._request.stream is not None:
            self.abort()


def _is_endless(event: Any) -> bool:
    """Whether its sender might go on with it for ever: a ping, a pong, or a fragment with nothing in it."""
    return event.opcode in (Opcode.PING, Opcode.PONG) or (event.opcode is Opcode.CONT and not event.data)
