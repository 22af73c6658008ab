"""How bytes leave to one client: straight to the transport of Sanic's own server.

The transport's write buffer is the client's queue, and every frame of a session leaves by its one
outlet: Sanic's ``send`` waits while more than 64 KiB are buffered, and direct writes would overtake
it. The only file that touches private parts of Sanic: ``io_proto``, ``ws_proto`` and
``process_events`` of its WebSocket, ``HttpProtocol._time`` and ``_callback_check_timeouts``.
"""

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from sanic import Request, Websocket

from . import wire
from .errors import CloseCode
from .protocol import Close, Frame
from .wire import Form

__all__ = ["CLOSED_WITHOUT_CODE", "EventStreamOutlet", "Outlet", "WebSocketOutlet"]

CLOSED_WITHOUT_CODE: Final = 1006  # RFC 6455, section 7.1.5

_LOST_AFTER_SECONDS: Final = 20
_CLOSE_SECONDS: Final = 5.0
_INVALID_DATA: Final = 1007
_FAULTS_OF_THE_CLIENT: Final = (1002, _INVALID_DATA, CloseCode.TOO_BIG)
_HIGH_WATER_BYTES: Final = 2**30
_SANIC_WATER_BYTES: Final = {"high": 65_536, "low": 16_384}


class Outlet(Protocol):
    """What a session needs of the way to its client."""

    quiet: bool
    """Nothing was written since somebody last set it."""

    on_failure: Callable[[int], None] | None
    """Called when the server gives the connection up, with the close code; ``None``: nobody cares any more."""

    @property
    def form(self) -> Form:
        """Which shape of bytes it takes."""

    def write(self, data: bytes) -> None:
        """Write bytes that are already in the outlet's form; never waits, never raises."""

    def send(self, frame: Frame, retry: int | None = None) -> None:
        """Write one frame."""

    def keep(self) -> None:
        """Keep the server from taking the connection for idle."""

    def finish(self, close: Close) -> None:
        """Write the last frame, then end the connection as its transport does."""


class _TransportOutlet:
    form: Form

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.quiet = False
        self.on_failure: Callable[[int], None] | None = None
        # Above this mark Sanic's own frames (pong, close) would wait behind ours.
        transport.set_write_buffer_limits(high=_HIGH_WATER_BYTES)
        _bound_silence(transport)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        try:
            self._transport.write(data)
        except RuntimeError:
            # Sanic half-closes a WebSocket some turns of the loop before it closes it.
            return
        self.quiet = False

    def send(self, frame: Frame, retry: int | None = None) -> None:
        self.write(wire.encode_frame(frame, self.form, retry))


class WebSocketOutlet(_TransportOutlet):
    """The way to a client of ``/stream``."""

    form = Form.WEBSOCKET

    def __init__(self, websocket: Websocket) -> None:
        self._websocket = cast(Any, websocket)
        super().__init__(self._websocket.io_proto.transport)
        # Does nothing for a WebSocket, but would keep a closed connection in memory for half a minute.
        self._websocket.io_proto._callback_check_timeouts.cancel()
        self._closing: asyncio.Task[None] | None = None
        self._protocol = self._websocket.ws_proto
        self._fail = self._protocol.fail
        self._protocol.fail = self._failed
        self._process_events = self._websocket.process_events
        self._websocket.process_events = self._process_valid_events

    def keep(self) -> None:
        """Nothing to do: Sanic takes no WebSocket for idle, it pings."""

    def finish(self, close: Close) -> None:
        """Write the last frame, and begin the closing handshake."""
        self.send(close)
        # The handler reads on, so that the closing handshake (RFC 6455, section 7.1) can end in order.
        self._closing = asyncio.create_task(self._websocket.close(close.code, close.reason))
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._transport.abort)

    @property
    def close_code(self) -> int:
        """The code that the client has closed with."""
        # Its own `close_code` is not there before the connection has ended.
        received = self._protocol.close_rcvd
        return CLOSED_WITHOUT_CODE if received is None else int(received.code)

    def _failed(self, code: int, reason: str = "") -> None:
        """Say why in a frame of ours too, where Sanic or `websockets` fails the connection."""
        if code != CLOSED_WITHOUT_CODE and self.on_failure is not None:
            self.on_failure(int(code))
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

    def __init__(self, request: Request) -> None:
        transport = cast(Any, request.transport)
        super().__init__(transport)
        self._request = request
        self._protocol = transport.get_protocol()
        self._finished = asyncio.Event()
        self.keep()

    def keep(self) -> None:
        """Keep Sanic from taking the stream for idle."""
        # Sanic cancels a response when RESPONSE_TIMEOUT has passed since its protocol last sent;
        # what is written straight to the transport does not count there.
        self._protocol._time = math.inf

    def finish(self, close: Close) -> None:
        """Write the last frame, and have the handler end the stream."""
        self.send(close, close.retry if isinstance(close.retry, int) else None)
        self._finished.set()
        asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._abort_if_stuck)

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
            self._transport.abort()


def _bound_silence(transport: asyncio.Transport) -> None:
    """Have the kernel give the connection up when nothing sent is acknowledged, or taken (RFC 5482)."""
    connection = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST_AFTER_SECONDS * 1000)
