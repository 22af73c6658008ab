"""A TCP proxy that can stop forwarding without an error: connections stay open, and new ones are accepted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Proxy"]

_READ_BYTES = 65_536


class Proxy:
    """A proxy from a free port to another port of this machine."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The address of the proxy, as a NATS URL."""
        return f"nats://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Accept connections until the end of the context."""
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

    def pause(self) -> None:
        """Hold back all data. Connections stay open, and new ones are accepted."""
        self._forwarding.clear()

    def resume(self) -> None:
        """Forward all data again, including the data held back."""
        self._forwarding.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_writer = None
        try:
            await self._forwarding.wait()
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._copy(reader, target_writer), self._copy(target_reader, writer))
        except OSError:
            pass
        finally:
            writer.close()
            if target_writer is not None:
                target_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            await self._forwarding.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
