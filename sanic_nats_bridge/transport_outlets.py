"""The ways to clients of Sanic's own HTTP/1.1 server: straight to the transport.

The transport's write buffer is the client's queue, and every frame of a session leaves by its one
outlet: Sanic's ``send`` waits while the buffer is full, and direct writes would overtake it. The only
file that touches private parts of Sanic's server: ``io_proto``, ``ws_proto``, ``pings``, ``ping_timeout``
and ``process_events`` of its WebSocket; ``_can_write``, ``_time`` and ``_callback_check_timeouts`` of
its protocols.
"""

import asyncio
import contextlib
import math
import socket
import time
from typing import Any, Final, cast

from sanic import Request, Websocket

from . import wire
from .errors import CloseCode
from .outlet import CLOSED_WITHOUT_CODE, OutletWatcher
from .protocol import Close, Frame
from .settings import Settings
from .wire import Form

__all__ = ["EventStreamOutlet", "WebSocketOutlet"]

_INVALID_DATA: Final = 1007
_FAULTS_OF_THE_CLIENT: Final = (1002, _INVALID_DATA, CloseCode.TOO_BIG)
_LOW_WATER: Final = 4
_SANIC_WATER_BYTES: Final = {"high": 65_536, "low": 16_384}


class _WriteGate(asyncio.Event):
    """What Sanic's protocol clears and sets as the transport's buffer passes its marks."""

    def __init__(self, outlet: "_TransportOutlet") -> None:
        super().__init__()
        super().set()
        self._outlet = outlet

    def clear(self) -> None:
        super().clear()
        if self._outlet.watcher is not None:
            self._outlet.watcher.filled()

    def set(self) -> None:
        was_full = not self.is_set()
        super().set()
        if was_full and self._outlet.watcher is not None:
            self._outlet.watcher.drained()


class _TransportOutlet:
    form: Form

    def __init__(self, protocol: Any, settings: Settings) -> None:
        self._transport: asyncio.Transport = protocol.transport
        self.watcher: OutletWatcher | None = None
        self.written = 0
        protocol._can_write = _WriteGate(self)
        high = settings.high_water_bytes
        self._transport.set_write_buffer_limits(high=high, low=high // _LOW_WATER)
        _bound_silence(self._transport, settings.write_timeout)

    @property
    def pending(self) -> int:
        return self._transport.get_write_buffer_size()

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
        self.write(wire.encode_frame(frame, self.form, retry))

    def abort(self) -> None:
        self._transport.abort()


class WebSocketOutlet(_TransportOutlet):
    """The way to a client of ``/stream``."""

    form = Form.WEBSOCKET

    def __init__(self, websocket: Websocket, settings: Settings) -> None:
        self._websocket = cast(Any, websocket)
        super().__init__(self._websocket.io_proto, settings)
        # Does nothing for a WebSocket, but would keep a closed connection in memory for half a minute.
        self._websocket.io_proto._callback_check_timeouts.cancel()
        # Sanic would close a slow client, whose pong comes behind all that waits for it: `keep` judges instead.
        self._ping_timeout, self._websocket.ping_timeout = self._websocket.ping_timeout, None
        self._closing: asyncio.Task[None] | None = None
        self._protocol = self._websocket.ws_proto
        self._fail = self._protocol.fail
        self._protocol.fail = self._failed
        self._process_events = self._websocket.process_events
        self._websocket.process_events = self._process_valid_events

    def keep(self) -> None:
        """Give up a client that has left Sanic's pings unanswered, though nothing waits for it."""
        unanswered = len(self._websocket.pings)
        if self._ping_timeout is None or unanswered < 2 or self.pending:
            return
        # What waits in buffers of the kernel and of proxies cannot be seen: twice the time.
        if (unanswered - 1) * self._websocket.ping_interval >= 2 * self._ping_timeout:
            self._websocket.fail_connection(CloseCode.INTERNAL, "No answer to a ping")

    def finish(self, close: Close, seconds: float) -> None:
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
        """Say why in a frame of ours too, where Sanic or `websockets` fails the connection."""
        if code != CLOSED_WITHOUT_CODE and self.watcher is not None:
            self.watcher.gone(int(code))
            self.send(Close(code=int(code), reason=reason, reconnect=code not in _FAULTS_OF_THE_CLIENT))
        self._fail(code, reason)

    async def _process_valid_events(self, events: Any) -> None:
        try:
            await self._process_events(events)
        except UnicodeDecodeError:
            # Sanic lets it go unseen, and never reads again (RFC 6455, section 8.1: fail with 1007).
            self._websocket.fail_connection(_INVALID_DATA, "A text frame must be UTF-8")


class EventStreamOutlet(_TransportOutlet):
    """The way to a client of ``/events``, once its response has begun."""

    form = Form.EVENT_STREAM

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._protocol = cast(Any, request.transport).get_protocol()
        super().__init__(self._protocol, settings)
        self._finished = asyncio.Event()
        self.keep()

    def keep(self) -> None:
        """Keep Sanic from taking the stream for idle."""
        # Sanic cancels a response when RESPONSE_TIMEOUT has passed since its protocol last sent;
        # what is written straight to the transport does not count there.
        self._protocol._time = math.inf

    def finish(self, close: Close, seconds: float) -> None:
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


def _bound_silence(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel give the connection up when nothing sent is acknowledged, or taken (RFC 5482)."""
    connection = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
