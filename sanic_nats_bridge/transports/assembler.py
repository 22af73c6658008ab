"""What the client of a WebSocket has sent, until it is read."""

import asyncio
from collections import deque
from typing import Any, Final, Protocol

from sanic.exceptions import WebsocketClosed
from websockets.frames import Opcode

__all__ = ["MessageAssembler", "ReadSource"]

_MAX_WAITING: Final = 16
_MAX_WAITING_BYTES: Final = 65_536


class ReadSource(Protocol):
    """From where the messages come, and go on to come unless it is paused: a transport, or what stands before it."""

    def is_closing(self) -> bool:
        """Whether it is about to end."""

    def pause_reading(self) -> None:
        """Bring nothing more."""

    def resume_reading(self) -> None:
        """Go on."""


class MessageAssembler:
    """Stands in for the frame assembler of Sanic's WebSocket, and for the future by which Sanic ends a read.

    Sanic's ``recv()`` makes two tasks for each message, and holds 8 KiB for each connection that waits.
    """

    __slots__ = (
        "_closed", "_full", "_held", "_max_bytes", "_messages", "_part", "_shut", "_size", "_source", "_text",
        "_waiter",
    )  # fmt: skip

    def __init__(self, source: ReadSource, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._messages: deque[str | bytes] | None = None
        self._size = 0
        self._part = bytearray()
        self._text = False
        self._closed = False
        self._full = False
        self._held = False
        self._shut = False
        self._waiter: asyncio.Future[None] | None = None

    async def put(self, frame: Any) -> None:
        """Take a frame, as `websockets` has checked it; called by Sanic, which answers pings itself.

        Of a message in fragments that is larger than may be what has come is a message: so its reader ends the
        connection in its turn, and its sender cannot go on with it for ever.

        Raises:
            UnicodeDecodeError: A text is not UTF-8.
        """
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
            self._part = bytearray()
        self._part += frame.data
        if frame.fin:
            message, self._part = bytes(self._part), bytearray()
            self.add(message.decode() if self._text else message)
        elif len(self._part) > self._max_bytes:
            message, self._part = bytes(self._part), bytearray()
            self._text = False  # the cut may be within a character, here and at the beginning of the rest
            self.add(message)

    def cancel(self) -> None:
        """Hear that nothing more comes; called by Sanic when the client has closed."""
        self._closed = True
        self._wake()

    async def get(self) -> str | bytes:
        """The next message: a text, or bytes of a binary one.

        Raises:
            WebsocketClosed: The client has closed, and all that it had sent was read.
        """
        while not self._messages:
            if self._closed:
                raise WebsocketClosed("The client has closed")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        if not self._messages:
            self._messages = None
            self._size = 0
            self._full = False
            self._pace()
        return message

    def hold(self) -> None:
        """Read no further: answers, Sanic's own to pings too, would only wait."""
        self._held = True
        self._pace()

    def release(self) -> None:
        """Read on."""
        self._held = False
        self._pace()

    def shut(self) -> None:
        """Read nothing more at all, not even to leave it out."""
        self._shut = True
        self._pace()

    def add(self, message: str | bytes) -> None:
        """Take a whole message."""
        if self._messages is None:
            # An empty one takes more than half a KiB.
            self._messages = deque()
        self._messages.append(message)
        self._size += len(message)
        if len(self._messages) >= _MAX_WAITING or self._size >= _MAX_WAITING_BYTES:
            self._full = True
            self._pace()
        self._wake()

    def _pace(self) -> None:
        if self._source.is_closing():
            return
        if self._full or self._held or self._shut:
            self._source.pause_reading()
        else:
            self._source.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
