"""What was read from the connection of a WebSocket, until it is taken apart into frames."""

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["ReadThrottle"]

_SLICE_BYTES: Final = 4_096


class ReadThrottle:
    """Has little taken apart in one turn of the event loop; more than that waits, and nothing more is read meanwhile.

    One read brings 256 KiB: of frames of six bytes, that many hold the loop up for everybody.
    To the inbox it stands for the transport.
    """

    __slots__ = ("_end", "_ended", "_feed", "_paused", "_transport", "_turn", "_unfed")

    def __init__(
        self, transport: asyncio.Transport, feed: Callable[[bytes], None], end: Callable[[], bool | None]
    ) -> None:
        self._transport = transport
        self._feed = feed
        self._end = end
        self._unfed: bytearray | None = None
        self._paused = False
        self._ended = False
        self._turn: asyncio.Handle | None = None

    def data_received(self, data: bytes) -> None:
        """Take what was read."""
        if self._unfed is None:
            if len(data) <= _SLICE_BYTES and not self._paused:
                self._feed(data)
                return
            self._unfed = bytearray()
            self._transport.pause_reading()
        self._unfed += data
        if self._turn is None:
            self._feed_next()

    def eof_received(self) -> bool | None:
        """Hear that the client sends nothing more; it is passed on behind what waits.

        Where anything waits only TLS tells so, as it reads on by itself; it closes the connection at once then.
        """
        if self._unfed is None:
            return self._end()
        self._ended = True
        return None

    def drop(self) -> None:
        """Feed nothing more of what waits: the connection is over, or has failed (RFC 6455, section 7.1.7)."""
        if self._unfed is None:
            return
        self._unfed = None
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        if not self._paused and not self._transport.is_closing():
            # What is still to come is left out by `websockets`; unread, it would turn the end into a reset.
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        """Whether the connection is about to end."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read no further, and feed nothing of what was read."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, behind what waits."""
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
        self._feed(part)
        if self._unfed:
            # Behind the task that the feeding has made, which may find that no more shall come.
            self._turn = asyncio.get_running_loop().call_soon(self._feed_next)
        elif self._unfed is not None:
            self._all_fed()

    def _all_fed(self) -> None:
        self._unfed = None
        if self._ended:
            self._end()
        elif not self._paused and not self._transport.is_closing():
            self._transport.resume_reading()
