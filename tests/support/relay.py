"""A TCP relay that can break the connections through it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.support.bridge import until
from tests.support.raw import reset


class Relay:
    """A TCP relay between a bridge and NATS, or between two NATS servers."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.open = True
        """False while new connections are closed at once."""

    @classmethod
    @contextlib.asynccontextmanager
    async def listening(cls, port: int) -> AsyncIterator["Relay"]:
        relay = cls(port)
        server = await asyncio.start_server(relay._serve, "127.0.0.1", 0)
        relay.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield relay
        finally:
            server.close()
            relay.cut()
            await until(lambda: not relay._writers)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            if not writer.is_closing():
                reset(writer.transport)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.close()
            return
        try:
            upstream, other = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, other}
        await asyncio.gather(_copy(reader, other), _copy(upstream, writer))
        self._writers -= {writer, other}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()
