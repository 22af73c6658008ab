"""The keepalive of a session: heartbeats, and the end of a connection whose client accepts no data."""

import asyncio
import math
from collections.abc import Callable

from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Heartbeat
from ..settings import Settings
from ..transports.base import Transport

__all__ = ["Keepalive"]

_HEARTBEATS = {wire_format: encoding.encode_frame(Heartbeat(), wire_format) for wire_format in WireFormat}
_CHECKS_IN_WRITE_TIMEOUT = 4
_INTERVALS_OF_POSITION = 3
_NOTHING_PENDING = -1  # less than any number of accepted bytes


class Keepalive:
    """A timer that serves both the heartbeat and the write timeout of one session."""

    __slots__ = (
        "_accepted",
        "_idle_ticks",
        "_period",
        "_position",
        "_settings",
        "_stalled_ticks",
        "_ticks",
        "_timer",
        "_transport",
        "_written",
    )

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._position: Callable[[], str] | None = None
        self._ticks = 0
        self._settings = settings
        self._period = min(settings.heartbeat / 2, settings.write_timeout / _CHECKS_IN_WRITE_TIMEOUT)
        self._written = transport.written
        self._accepted = _NOTHING_PENDING
        self._idle_ticks = 0
        self._stalled_ticks = 0
        self._schedule()

    def stop(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._tick)

    def _tick(self) -> None:
        pending = self._transport.pending
        if self._has_stalled(pending):
            self._transport.abort()
            return
        self._schedule()
        # This may end the session, which stops this timer.
        self._transport.keepalive()
        if not self._timer.cancelled():
            self._send_heartbeat_if_idle(pending)

    def _has_stalled(self, pending: int) -> bool:
        """Return whether the client has accepted no byte during the write timeout."""
        accepted = self._transport.written - pending
        if pending and accepted <= self._accepted and self._transport.reports_pending:
            self._stalled_ticks += 1
        else:
            self._stalled_ticks = 0
            self._accepted = accepted if pending else _NOTHING_PENDING
        return self._stalled_ticks >= math.ceil(self._settings.write_timeout / self._period)

    def announce_position(self, position: Callable[[], str]) -> None:
        """Send heartbeats with the position of the client in its streams, one in each fourth interval at least.

        Args:
            position: Returns the position, after all messages up to it were written; empty if there is none now.
        """
        self._position = position

    def _send_heartbeat_if_idle(self, pending: int) -> None:
        """Write a heartbeat if the interval could otherwise pass without a frame."""
        if self._position is not None:
            self._send_position(self._position)
        if pending or self._transport.written != self._written:
            self._idle_ticks = 0
        else:
            self._idle_ticks += 1
        if self._idle_ticks >= self._settings.heartbeat // self._period - 1:
            self._transport.write(_HEARTBEATS[self._transport.wire_format])
            self._idle_ticks = 0
        self._written = self._transport.written

    def _send_position(self, position: Callable[[], str]) -> None:
        self._ticks += 1
        interval = max(1, self._settings.heartbeat // self._period - 1)
        is_idle = self._transport.written == self._written and self._idle_ticks + 1 >= interval
        if is_idle or self._ticks >= _INTERVALS_OF_POSITION * interval:
            current = position()
            if current:
                frame = encoding.encode_frame(Heartbeat(current), self._transport.wire_format, event_id=current)
                self._transport.write(frame)
                self._ticks = 0
