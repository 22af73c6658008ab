"""The sockets of a NATS connection: those of nats-py, but for when they read, send and let go.

Private names of nats-py's transports that are used: ``_bare_io_writer`` (TCP), ``_client``
(WebSocket).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from nats.aio.transport import TcpTransport, WebSocketTransport

__all__ = ["TcpSocket", "WebSocket", "transport_for", "within"]

_READ_BYTES: Final = 512 * 1024


class TcpSocket(TcpTransport):
    """Reads in larger portions than nats-py, and writes once for each turn of the event loop.

    The larger the portion, the fewer writes to each client of the bridge. One write for all that a
    turn has to say, because a second one fails where the server has closed meanwhile, and asyncio
    then throws away the ``-ERR`` that says why.

    Args:
        tls_only: Whether nothing may be written before TLS is spoken.
    """

    def __init__(self, *, tls_only: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.aborted = False
        self._barred = tls_only
        self._unsent: list[bytes] = []

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Connect, with room for a whole portion."""
        await super().connect(uri, _READ_BYTES, connect_timeout)

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Speak TLS on the socket, which is connected."""
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._barred = False

    async def read(self, buffer_size: int) -> Any:
        """What has come, as much as there may be of it."""
        return await super().read(_READ_BYTES)

    def write(self, payload: bytes) -> None:
        """Write the bytes at the end of this turn.

        Raises:
            ConnectionError: They would go out in the clear, and must not.
        """
        if self._barred:
            # nats-py logs in in the clear wherever the server does not insist on TLS.
            raise ConnectionError("TLS was asked for, and the server offers none")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent.append(payload)

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Write them all, in their order."""
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Wait until little is left to be written."""
        self._send()
        await super().drain()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is left, and close."""
        self._send()
        super().close()  # type: ignore[no-untyped-call]

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        # A transport that is closing raises, on uvloop; what was to be sent is asked for again.
        with contextlib.suppress(RuntimeError):
            if unsent:
                super().write(b"".join(unsent))  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """Close the socket at once; what still waits in it is lost."""
        self.aborted = True
        # That of the socket itself, below TLS, whose own end would first wait for the server.
        if self._bare_io_writer is not None:
            self._bare_io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the server has all that was written, unless that was given up."""
        # After a TLS handshake that failed nats-py would wait for ever.
        if not self.aborted:
            await super().wait_closed()  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        # nats-py makes a transport of its own where there is none that is connected.
        return True


class WebSocket(WebSocketTransport):
    """Sends at once what is written, which nats-py only queues."""

    def __init__(self) -> None:
        super().__init__()
        self._draining: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None

    def write(self, payload: bytes) -> None:
        """Queue the bytes, and see to it that the queue is sent."""
        super().write(payload)  # type: ignore[no-untyped-call]
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._send_queued())

    async def _send_queued(self) -> None:
        with contextlib.suppress(Exception):  # the read loop hears of it too
            await self.drain()  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """Close the socket, without the closing handshake."""
        if self._client is not None:
            self._letting_go = asyncio.create_task(self._client.close())


def transport_for(url: str, *, tls_only: bool = False) -> TcpSocket | WebSocket:
    """The transport for a server of this URL, which is not connected yet.

    Whether a WebSocket has TLS its scheme alone says.
    """
    return WebSocket() if url.startswith("ws") else TcpSocket(tls_only=tls_only)


async def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Let it work for ``seconds``, whatever comes of it; then cancel it, and once more if it goes on all the same."""
    # A task of its own: nats-py cancels all who wait for the end of one transport when it cancels one of them.
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.cancel():
            await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
