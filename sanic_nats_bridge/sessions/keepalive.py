"""Keeps one connection alive, and gives it up when its client takes nothing."""

import asyncio
import math
from typing import Final

from ..protocol import encoding
from ..protocol.encoding import WireFormat
from ..protocol.messages import Heartbeat
from ..settings import Settings
from ..transports.base import Transport

__all__ = ["Keepalive"]

_HEARTBEATS: Final = {wire_format: encoding.encode_frame(Heartbeat(), wire_format) for wire_format in WireFormat}
_CHECKS_IN_WRITE_TIMEOUT: Final = 4
_NOTHING: Final = -1  # waits for the client


class Keepalive:
    """Beats for as long as a session lives; one timer serves the heartbeat and the write timeout."""

    __slots__ = ("_idle_beats", "_period", "_quiet_beats", "_settings", "_taken", "_timer", "_transport", "_written")

    def __init__(self, transport: Transport, settings: Settings) -> None:
        self._transport = transport
        self._settings = settings
        self._period = min(settings.heartbeat / 2, settings.write_timeout / _CHECKS_IN_WRITE_TIMEOUT)
        self._written = transport.written
        self._taken = _NOTHING
        self._quiet_beats = 0
        self._idle_beats = 0
        self._schedule()

    def stop(self) -> None:
        """Beat no more."""
        self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._period, self._beat)

    def _beat(self) -> None:
        pending = self._transport.pending
        if self._is_stuck(pending):
            self._transport.abort()
            return
        self._schedule()
        # It may end the session, and so stop this pulse.
        self._transport.keepalive()
        if not self._timer.cancelled():
            self._break_silence(pending)

    def _is_stuck(self, pending: int) -> bool:
        """Whether the client has taken not one byte for as long as it may."""
        taken = self._transport.written - pending
        if pending and taken <= self._taken and self._transport.reports_pending:
            self._idle_beats += 1
        else:
            self._idle_beats = 0
            self._taken = taken if pending else _NOTHING
        return self._idle_beats >= math.ceil(self._settings.write_timeout / self._period)

    def _break_silence(self, pending: int) -> None:
        """Write a heartbeat where else no frame might go out for a whole interval."""
        if pending or self._transport.written != self._written:
            self._quiet_beats = 0
        else:
            self._quiet_beats += 1
        if self._quiet_beats >= self._settings.heartbeat // self._period - 1:
            self._transport.write(_HEARTBEATS[self._transport.wire_format])
            self._quiet_beats = 0
        self._written = self._transport.written
