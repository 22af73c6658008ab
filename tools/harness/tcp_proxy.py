"""A way to NATS that can fall silent: nothing is refused, nothing is closed, nothing arrives."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["Proxy"]

_READ_BYTES: Final = 65_536


class Proxy:
    """Forwards connections to a port of this machine, until it holds back what comes, and everything after it."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it stands, as a NATS URL."""
        return f"nats://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Take connections."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    def hold(self) -> None:
        """Swallow the way: connections stay, and new ones can be made, but no byte passes."""
        self._open.clear()

    def release(self) -> None:
        """Let everything pass again, what was held back included."""
        self._open.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_writer = None
        try:
            await self._open.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        except OSError:
            pass
        finally:
            writer.close()
            if far_writer is not None:
                far_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
