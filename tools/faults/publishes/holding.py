"""A proxy that can hold back answers, so that they are lost when its connections are cut."""

import asyncio

from ...harness.tcp_proxy import READ_BYTES, Proxy, Stream

__all__ = ["HoldingProxy"]


class HoldingProxy(Proxy):
    """A proxy whose target may receive everything while its answers wait."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._answering = asyncio.Event()
        self._answering.set()

    def hold(self) -> None:
        """Hold back all answers from now on."""
        self._answering.clear()

    def release(self) -> None:
        """Forward what was held back, and all further answers."""
        self._answering.set()

    def cut(self) -> None:
        """Reset every connection. What was held back is lost."""
        super().cut()
        self._answering.set()

    async def _forward(self, client: Stream, target: Stream) -> None:
        await asyncio.gather(self._copy(client.reader, target.writer), self._answer(target.reader, client.writer))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            await self._answering.wait()
            await self._forwarding.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
