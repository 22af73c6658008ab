"""The messages that the client of a WebSocket has sent and the session has not read yet."""

import asyncio
from collections import deque
from typing import Any, Protocol

from sanic.exceptions import WebsocketClosed
from websockets.frames import Opcode

__all__ = ["MessageAssembler", "ReadSource"]

_MAX_WAITING = 16
_MAX_WAITING_BYTES = 65_536


class ReadSource(Protocol):
    """A source of data that can be paused, such as a transport or a `ReadThrottle`."""

    def is_closing(self) -> bool:
        """Return whether the source is about to end."""

    def pause_reading(self) -> None:
        """Pause the source."""

    def resume_reading(self) -> None:
        """Resume the source."""


class MessageAssembler:
    """Replacement for the frame assembler of Sanic's WebSocket, and for the future by which Sanic ends a read.

    Sanic's ``recv()`` starts two tasks per message, and holds 8 KiB per waiting connection.

    Args:
        source: The source of the frames. It is paused while many messages wait.
        max_bytes: The size at which an incomplete message becomes a message.
    """

    __slots__ = (
        "_closed", "_full", "_max_bytes", "_messages", "_part", "_paused", "_size", "_source", "_stopped", "_text",
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
        self._paused = False
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None

    async def put(self, frame: Any) -> None:
        """Add a frame, which `websockets` has checked. Called by Sanic, which answers pings itself.

        The received part of an oversized fragmented message becomes a message. The session then rejects it because of
        its size, so a client can't send such a message without end.

        Raises:
            UnicodeDecodeError: A text message isn't UTF-8.
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
            self._text = False  # because both this part and the rest may begin or end within a character
            self.add(message)

    def cancel(self) -> None:
        """End the stream of messages. Called by Sanic when the client has closed the connection."""
        self._closed = True
        self._wake()

    async def get(self) -> str | bytes:
        """Return the next message: a string, or the bytes of a binary message.

        Raises:
            WebsocketClosed: The client has closed the connection, and all its messages were read.
        """
        while not self._messages:
            if self._closed:
                raise WebsocketClosed("The client has closed the connection")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        if not self._messages:
            self._messages = None
            self._size = 0
            self._full = False
            self._update_reading()
        return message

    def pause(self) -> None:
        """Pause reading, because replies, and Sanic's pongs, would only add to the pending bytes."""
        self._paused = True
        self._update_reading()

    def resume(self) -> None:
        """Resume reading."""
        self._paused = False
        self._update_reading()

    def stop(self) -> None:
        """Stop reading for good. Further input isn't even read to be dropped."""
        self._stopped = True
        self._update_reading()

    def add(self, message: str | bytes) -> None:
        """Add a complete message."""
        if self._messages is None:
            # Created on demand, because an empty deque takes more than half a KiB.
            self._messages = deque()
        self._messages.append(message)
        self._size += len(message)
        if len(self._messages) >= _MAX_WAITING or self._size >= _MAX_WAITING_BYTES:
            self._full = True
            self._update_reading()
        self._wake()

    def _update_reading(self) -> None:
        if self._source.is_closing():
            return
        if self._full or self._paused or self._stopped:
            self._source.pause_reading()
        else:
            self._source.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
