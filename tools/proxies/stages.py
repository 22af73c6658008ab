"""The treatment of bytes by the middlebox: stages, each of which writes into the next."""

import asyncio
import contextlib
import time
import zlib

from .rules import Flow, Framing

__all__ = ["Compress", "CutError", "Frame", "Output", "Pad", "Stage", "treatment"]

_GZIP = 31  # zlib's number of a window of 32 KiB in the format of gzip
_STEP_SECONDS = 0.1
_PIECE_SECONDS = 0.0005


class CutError(Exception):
    """The end of a connection that the proxy cuts."""


class Stage:
    """A stage that changes nothing."""

    def __init__(self, following: "Stage | None") -> None:
        self._following = following

    async def write(self, data: bytes) -> None:
        """Pass bytes on.

        Raises:
            CutError: The connection must be cut.
            OSError: The other end has closed it.
        """
        assert self._following is not None
        await self._following.write(data)

    async def end(self) -> None:
        """Pass on what was collected, because nothing follows."""
        if self._following is not None:
            await self._following.end()

    def stop(self) -> None:
        """End what runs in the background."""
        if self._following is not None:
            self._following.stop()


class Output(Stage):
    """The last stage, which writes into a connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        super().__init__(None)
        self._writer = writer
        self.last_write = time.monotonic()

    async def write(self, data: bytes) -> None:
        """Send bytes."""
        self.last_write = time.monotonic()
        self._writer.write(data)
        await self._writer.drain()


def treatment(flow: Flow, output: Stage) -> Stage:
    """Return the first of the stages that do to bytes what the flow demands."""
    stage = output
    if flow.piece_bytes:
        stage = _Split(stage, flow.piece_bytes)
    if flow.bytes_per_second:
        stage = _Limit(stage, flow.bytes_per_second)
    if flow.flush_every:
        stage = _Flush(stage, flow.flush_every)
    if flow.hold_bytes:
        stage = _Hold(stage, flow.hold_bytes)
    if flow.delay:
        stage = _Delay(stage, flow.delay)
    if flow.cut_after_bytes is not None:
        stage = _Cut(stage, flow.cut_after_bytes)
    if flow.lost_after is not None:
        stage = _Lose(stage, flow.lost_after)
    return stage


class _Lose(Stage):
    def __init__(self, following: Stage, after: float) -> None:
        super().__init__(following)
        self._end = time.monotonic() + after

    async def write(self, data: bytes) -> None:
        if time.monotonic() < self._end:
            await super().write(data)


class _Cut(Stage):
    def __init__(self, following: Stage, size: int) -> None:
        super().__init__(following)
        self._left = size

    async def write(self, data: bytes) -> None:
        if self._left:
            await super().write(data[: self._left])
        if len(data) > self._left:
            raise CutError
        self._left -= len(data)


class _Delay(Stage):
    def __init__(self, following: Stage, seconds: float) -> None:
        super().__init__(following)
        self._seconds = seconds
        self._queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def write(self, data: bytes) -> None:
        self._queue.put_nowait((time.monotonic() + self._seconds, data))

    async def end(self) -> None:
        self._queue.put_nowait((time.monotonic() + self._seconds, b""))
        await asyncio.wait({self._task})

    def stop(self) -> None:
        self._task.cancel()
        super().stop()

    async def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                at, data = await self._queue.get()
                await asyncio.sleep(max(at - time.monotonic(), 0))
                if not data:
                    await super().end()
                    return
                await super().write(data)


class _Hold(Stage):
    def __init__(self, following: Stage, size: int) -> None:
        super().__init__(following)
        self._size = size
        self._held = bytearray()

    async def write(self, data: bytes) -> None:
        self._held += data
        if len(self._held) >= self._size:
            await self._release()

    async def end(self) -> None:
        await self._release()
        await super().end()

    async def _release(self) -> None:
        if self._held:
            held = bytes(self._held)
            self._held.clear()
            await super().write(held)


class _Flush(_Hold):
    def __init__(self, following: Stage, seconds: float) -> None:
        super().__init__(following, 2**62)
        self._seconds = seconds
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        self._task.cancel()
        super().stop()

    async def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(self._seconds)
                await self._release()


class _Limit(Stage):
    def __init__(self, following: Stage, rate: int) -> None:
        super().__init__(following)
        self._rate = rate

    async def write(self, data: bytes) -> None:
        size = max(int(self._rate * _STEP_SECONDS), 1)
        for index in range(0, len(data), size):
            piece = data[index : index + size]
            await super().write(piece)
            await asyncio.sleep(len(piece) / self._rate)


class _Split(Stage):
    def __init__(self, following: Stage, size: int) -> None:
        super().__init__(following)
        self._size = size

    async def write(self, data: bytes) -> None:
        for index in range(0, len(data), self._size):
            await super().write(data[index : index + self._size])
            await asyncio.sleep(_PIECE_SECONDS)


class Pad(Stage):
    """A comment before the first event of a stream."""

    def __init__(self, following: Stage, size: int) -> None:
        super().__init__(following)
        self._padding = b":" + b" " * size + b"\n\n"

    async def write(self, data: bytes) -> None:
        """Pass bytes on."""
        padding, self._padding = self._padding, b""
        await super().write(padding + data)


class Compress(Stage):
    """The format of gzip, flushed after each piece or only at the end."""

    def __init__(self, following: Stage, *, flushed: bool) -> None:
        super().__init__(following)
        self._flushed = flushed
        self._packer = zlib.compressobj(wbits=_GZIP)

    async def write(self, data: bytes) -> None:
        """Compress bytes, and pass on what comes of them."""
        packed = self._packer.compress(data)
        if self._flushed:
            packed += self._packer.flush(zlib.Z_SYNC_FLUSH)
        if packed:
            await super().write(packed)

    async def end(self) -> None:
        """Pass on the rest."""
        await super().write(self._packer.flush())
        await super().end()


class Frame(Stage):
    """The framing of a body (RFC 9112, section 7.1)."""

    def __init__(self, following: Stage, framing: Framing) -> None:
        super().__init__(following)
        self._framing = framing

    async def write(self, data: bytes) -> None:
        """Pass content on in chunks, if the framing has any."""
        if self._framing == "close":
            framed = data
        elif self._framing == "bytes":
            framed = b"".join(_chunk(data[index : index + 1]) for index in range(len(data)))
        else:
            framed = _chunk(data)
        await super().write(framed)

    async def end(self) -> None:
        """Pass on the last chunk."""
        if self._framing != "close":
            await super().write(b"0\r\n\r\n")
        await super().end()


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)
