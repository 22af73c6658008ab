"""A proxy before a worker that cuts connections while something is on its way to a client."""

import asyncio
import random

from ...harness.tcp_proxy import READ_BYTES, Proxy, Stream

__all__ = ["CuttingProxy"]

_END_OF_EVENT = b"\n\n\r\n"
"""The end of the last event of a chunk, and of the chunk."""
_MEAN_BYTES = 15_000


class CuttingProxy(Proxy):
    """A proxy that cuts each connection after a random number of bytes for the client.

    Half of the connections are cut at any byte, the others at the end of an event if they are event streams.

    Args:
        target: The port of the worker.
        rng: Decides on the number of bytes.

    Attributes:
        cuts: Whether new connections will be cut.
        count: The number of connections that were cut.
    """

    def __init__(self, target: int, rng: random.Random) -> None:
        super().__init__(target)
        self.cuts = False
        self.count = 0
        self._rng = rng

    async def _forward(self, client: Stream, target: Stream) -> None:
        await asyncio.gather(self._copy(client.reader, target.writer), self._answer(target.reader, client))

    async def _answer(self, reader: asyncio.StreamReader, client: Stream) -> None:
        if not self.cuts:
            return await self._copy(reader, client.writer)
        left = 1 + int(self._rng.expovariate(1 / _MEAN_BYTES))
        between_events = self._rng.random() < 0.5
        while data := await reader.read(READ_BYTES):
            if len(data) >= left:
                place = data.find(_END_OF_EVENT, left) if between_events and _END_OF_EVENT in data else left
                if place >= 0:
                    client.writer.write(data[: place + (len(_END_OF_EVENT) if place != left else 0)])
                    await client.writer.drain()
                    self.count += 1
                    # The client must see what was before the cut, so the connection ends without a reset.
                    client.writer.close()
                    raise ConnectionResetError
            left -= min(left, len(data))
            client.writer.write(data)
            await client.writer.drain()
        client.writer.close()
        return None
