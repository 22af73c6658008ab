"""The messages that the client of a WebSocket has sent and the session has not read yet."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from sanic.exceptions import WebsocketClosed
from websockets.frames import Opcode

from ..errors import CloseCode, SizeLimitExceeded
from .input_limits import PROTOCOL_ERROR, FrameLimits

__all__ = ["MessageAssembler", "ReadSource"]

# In Python 3.11, a member of an enum takes longer to look up than several calls.
_TEXT, _BINARY, _CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
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

    All input goes through `data_received`. A message over ``max_bytes`` is rejected at the header of the frame by which
    it is too large. A message that has begun must be complete within ``seconds``, except that reading was paused.

    Args:
        source: The source of the input. It is paused while many messages wait.
        max_bytes: The largest size of a message.
        seconds: The time limit for one message.
        parse: Parses input, and passes the frames to `put`, in this turn of the event loop or the next.
        fail: Closes the connection at once, with this close code and reason.
    """

    __slots__ = (
        "_begun", "_begun_at", "_closed", "_exceeded", "_fail", "_full", "_is_reading", "_limits", "_max_bytes",
        "_messages", "_parse", "_part", "_paused", "_released", "_seconds", "_size", "_source", "_stopped", "_text",
        "_timer", "_waiter",
    )  # fmt: skip

    def __init__(
        self,
        source: ReadSource,
        max_bytes: int,
        seconds: float,
        parse: Callable[[bytes], None],
        fail: Callable[[int, str], object],
    ) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._parse = parse
        self._fail = fail
        self._limits = FrameLimits(max_bytes)
        self._begun = 0
        """The number of the message whose time is limited."""
        self._begun_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._exceeded = False
        """True if the client has exceeded a limit, which is reported once."""
        self._messages: deque[str | bytes | SizeLimitExceeded] | None = None
        self._size = 0
        self._part = bytearray()
        self._text = False
        self._closed = False
        self._full = False
        self._is_reading = True
        self._paused = False
        self._released = False
        self._stopped = False
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Parse input of the client, up to a message that is too large."""
        # Called for each read of a client, so a complete command costs two calls here.
        limits = self._limits
        passed = limits.check(data)
        if passed:
            self._parse(passed)
        if limits.is_idle:
            return
        if limits.code is None:
            self._limit_time()
        elif not self._exceeded:
            self._exceeded = True
            self._report(limits.code)

    def _report(self, code: int) -> None:
        if self._released:
            return
        # After the task that handles the parsed frames.
        loop = asyncio.get_running_loop()
        if code == PROTOCOL_ERROR:
            loop.call_soon(self._fail, code, "A control frame is too long")
        else:
            loop.call_soon(self._reject)

    def _reject(self) -> None:
        self._part = bytearray()
        self._add(SizeLimitExceeded(f"A command must be at most {self._max_bytes} bytes"), 0)

    def _limit_time(self) -> None:
        loop = asyncio.get_running_loop()
        if self._begun != self._limits.begun:
            self._begun = self._limits.begun
            self._begun_at = loop.time()
        if self._timer is None and not self._released:
            self._timer = loop.call_later(self._seconds, self._check_time)

    def _check_time(self) -> None:
        self._timer = None
        if not self._limits.incomplete or self._begun != self._limits.begun:
            return
        loop = asyncio.get_running_loop()
        if not self._is_reading:
            self._begun_at = loop.time()
        remaining = self._begun_at + self._seconds - loop.time()
        if remaining > 0:
            self._timer = loop.call_later(remaining, self._check_time)
        else:
            self._fail(CloseCode.TRY_AGAIN_LATER, f"A message must be complete within {self._seconds:g} seconds")

    async def put(self, frame: Any) -> None:
        """Add a frame, which `websockets` has checked. Called by Sanic, which answers pings itself.

        Raises:
            UnicodeDecodeError: A text message isn't UTF-8.
        """
        opcode = frame.opcode
        if opcode is _TEXT and frame.fin:
            # The usual command: a message of one frame.
            self.add(str(frame.data, "utf-8"))
            return
        if opcode not in (_TEXT, _BINARY, _CONT):
            return
        if opcode is not _CONT:
            self._text = opcode is _TEXT
            self._part = bytearray()
        self._part += frame.data
        if frame.fin:
            message, self._part = bytes(self._part), bytearray()
            self.add(message.decode() if self._text else message)

    def cancel(self) -> None:
        """End the stream of messages. Called by Sanic when the client has closed the connection."""
        self._closed = True
        self.release()
        self._wake()

    async def get(self) -> str | bytes:
        """Return the next message: a string, or the bytes of a binary message.

        Raises:
            WebsocketClosed: The client has closed the connection, and all its messages were read.
            SizeLimitExceeded: The next message is too large. No other follows it.
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
            if self._full:
                self._full = False
                self._update_reading()
        if isinstance(message, SizeLimitExceeded):
            raise message
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

    def release(self) -> None:
        """Release the timer, because further input is dropped. It would keep the connection in memory."""
        self._released = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, message: str | bytes) -> None:
        """Add a complete message."""
        self._add(message, len(message))

    def _add(self, message: str | bytes | SizeLimitExceeded, size: int) -> None:
        if self._messages is None:
            # Created on demand, because an empty deque takes more than half a KiB.
            self._messages = deque()
        self._messages.append(message)
        self._size += size
        if len(self._messages) >= _MAX_WAITING or self._size >= _MAX_WAITING_BYTES:
            self._full = True
            self._update_reading()
        self._wake()

    def _update_reading(self) -> None:
        if self._source.is_closing():
            return
        if self._full or self._paused or self._stopped:
            self._is_reading = False
            self._source.pause_reading()
            return
        if not self._is_reading:
            self._is_reading = True
            if self._timer is not None:
                self._begun_at = asyncio.get_running_loop().time()
        self._source.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
