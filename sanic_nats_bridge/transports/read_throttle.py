"""A limit on how much of a client's input is parsed in one turn of the event loop."""

import asyncio
from collections.abc import Callable

__all__ = ["ReadThrottle"]

_SLICE_BYTES = 4_096


class ReadThrottle:
    """The input of a WebSocket, which is parsed in small slices, one per turn of the event loop.

    One read returns up to 256 KiB. If these are frames of six bytes, parsing all of them at once delays every other
    client. Reading is paused while slices wait.

    For the `MessageAssembler` a throttle replaces the transport.

    Args:
        transport: The transport, whose reading is paused.
        end: Called after the last slice when the client has closed its side.
    """

    __slots__ = ("_end", "_ended", "_paused", "_transport", "_turn", "_unfed", "feed")

    def __init__(self, transport: asyncio.Transport, end: Callable[[], bool | None]) -> None:
        self._transport = transport
        self.feed: Callable[[bytes], None]
        """Parses a slice. Must be set before there is data."""
        self._end = end
        self._unfed: bytearray | None = None
        self._paused = False
        self._ended = False
        self._turn: asyncio.Handle | None = None
        """The scheduled call that feeds the next slice."""

    def data_received(self, data: bytes) -> None:
        """Feed the data, now or in the next turns of the event loop."""
        if self._unfed is None:
            if len(data) <= _SLICE_BYTES and not self._paused:
                self.feed(data)
                return
            self._unfed = bytearray()
            self._transport.pause_reading()
        self._unfed += data
        if self._turn is None:
            self._feed_next()

    def eof_received(self) -> bool | None:
        """Pass on the end of the client's input, after the waiting data.

        While data waits, only TLS calls this, because it reads on by itself. It then closes the connection at once.
        """
        if self._unfed is None:
            return self._end()
        self._ended = True
        return None

    def drop(self) -> None:
        """Drop the waiting data, because the connection has ended or failed (RFC 6455, section 7.1.7)."""
        if self._unfed is None:
            return
        self._unfed = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if not self._paused and not self._transport.is_closing():
            # `websockets` drops further data. If it stayed unread, the close would become a TCP reset.
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        """Return whether the connection is about to end."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Pause reading, and keep the waiting data."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Feed the waiting data, then resume reading."""
        self._paused = False
        if self._unfed is None:
            self._transport.resume_reading()
        elif self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._feed_next)

    def _feed_next(self) -> None:
        self._turn = None
        if self._unfed is None or self._paused:
            return
        if self._transport.is_closing():
            self.drop()
            return
        part = bytes(self._unfed[:_SLICE_BYTES])
        del self._unfed[:_SLICE_BYTES]
        self.feed(part)
        if self._unfed:
            # Scheduled after the task that the feeding has started, because that may pause or fail the connection.
            self._turn = asyncio.get_running_loop().call_soon(self._feed_next)
        elif self._unfed is not None:
            self._all_fed()

    def _all_fed(self) -> None:
        self._unfed = None
        if self._ended:
            self._end()
        elif not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
