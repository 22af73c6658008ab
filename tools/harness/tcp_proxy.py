"""A TCP proxy that can stop forwarding without an error, and break its connections."""

import asyncio
import socket
import struct
from typing import Any, NamedTuple

from .tcp_server import TcpServer

__all__ = ["READ_BYTES", "Proxy", "Stream", "reset"]

READ_BYTES = 65_536


class Stream(NamedTuple):
    """Both directions of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Proxy(TcpServer):
    """A proxy to another port of this machine.

    Attributes:
        down: New connections are reset.
        target: The port to which new connections are forwarded.
    """

    def __init__(self, target: int) -> None:
        super().__init__()
        self.down = False
        self.target = target
        self._forwarding = asyncio.Event()
        self._forwarding.set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The address of the proxy, as a NATS URL."""
        return f"nats://127.0.0.1:{self.port}"

    def pause(self) -> None:
        """Hold back all data. Connections stay open, and new ones are accepted."""
        self._forwarding.clear()

    def resume(self) -> None:
        """Forward all data again, including the data held back."""
        self._forwarding.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            if not writer.is_closing():
                reset(writer.transport)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            reset(writer.transport)
            return
        writers = [writer]
        self._writers.add(writer)
        try:
            await self._forwarding.wait()
            target = Stream(*await asyncio.open_connection("127.0.0.1", self.target))
            writers.append(target.writer)
            self._writers.add(target.writer)
            if not writer.is_closing():  # otherwise it was cut meanwhile
                await self._forward(Stream(reader, writer), target)
        except OSError:
            pass
        finally:
            self._writers.difference_update(writers)
            for each in writers:
                each.close()

    async def _forward(self, client: Stream, target: Stream) -> None:
        """Forward the data of a connection in both directions until its end."""
        await asyncio.gather(self._copy(client.reader, target.writer), self._copy(target.reader, client.writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            await self._forwarding.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


def reset(connection: Any) -> None:
    """Close a transport by RST, as the kernel does for a process that has crashed."""
    connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.abort()
