"""The sockets of a NATS connection: nats-py's transports with other read sizes, write times and ways to close.

Private names of nats-py's transports that are used: ``_bare_io_writer`` (TCP), ``_client`` (WebSocket).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Coroutine, Iterable
from typing import Any

from nats.aio.transport import TcpTransport, WebSocketTransport

__all__ = ["TcpSocket", "WebSocket", "transport_for", "within"]

_READ_BYTES = 512 * 1024


class TcpSocket(TcpTransport):
    """A TCP or TLS socket with larger reads than nats-py's, and one write per turn of the event loop.

    Larger reads mean fewer writes to each client of the bridge. A second write in the same turn could fail because the
    server has closed meanwhile. asyncio would then drop the ``-ERR`` that gives the reason.

    Args:
        tls_only: Whether to write nothing before the TLS handshake is done.
    """

    def __init__(self, *, tls_only: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.aborted = False
        self._awaits_tls = tls_only
        self._unsent: list[bytes] = []

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Connect, with a buffer for a large read. ``buffer_size`` is ignored."""
        await super().connect(uri, _READ_BYTES, connect_timeout)

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Do the TLS handshake on the connected socket. ``buffer_size`` is ignored."""
        await super().connect_tls(uri, ssl_context, buffer_size, connect_timeout)
        self._awaits_tls = False

    async def read(self, buffer_size: int) -> Any:
        """Read the available bytes, up to 512 KiB. ``buffer_size`` is ignored."""
        return await super().read(_READ_BYTES)

    def write(self, payload: bytes) -> None:
        """Write the bytes at the end of this turn of the event loop.

        Raises:
            ConnectionError: TLS is required, but the server doesn't offer it.
        """
        if self._awaits_tls:
            # nats-py sends credentials unencrypted if the server doesn't require TLS.
            raise ConnectionError("the settings require TLS, but the server does not offer it")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent.append(payload)

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Write all parts, in their order, at the end of this turn of the event loop."""
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Wait until the write buffer is below its limit."""
        self._send()
        await super().drain()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write the remaining bytes, then close."""
        self._send()
        super().close()  # type: ignore[no-untyped-call]

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        # A closing transport raises with uvloop. The next connection sends the subscriptions again.
        with contextlib.suppress(RuntimeError):
            if unsent:
                super().write(b"".join(unsent))  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """Close the socket at once. Unsent bytes are lost."""
        self.aborted = True
        # The socket below TLS, because a TLS transport would first wait for the server.
        if self._bare_io_writer is not None:
            self._bare_io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the socket is closed and its bytes are sent, unless it was aborted."""
        # nats-py would wait indefinitely after a failed TLS handshake.
        if not self.aborted:
            await super().wait_closed()  # type: ignore[no-untyped-call]

    def __bool__(self) -> bool:
        # nats-py would replace a transport that is false because it isn't connected yet.
        return True


class WebSocket(WebSocketTransport):
    """A WebSocket that sends written bytes at once. nats-py's only queues them."""

    def __init__(self) -> None:
        super().__init__()
        self._drain_task: asyncio.Task[None] | None = None
        self._abort_task: asyncio.Task[None] | None = None

    def write(self, payload: bytes) -> None:
        """Queue the bytes, and start to send the queue."""
        super().write(payload)  # type: ignore[no-untyped-call]
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = asyncio.create_task(self._send_queued())

    async def _send_queued(self) -> None:
        with contextlib.suppress(Exception):  # the read loop gets the same error
            await self.drain()  # type: ignore[no-untyped-call]

    def abort(self) -> None:
        """Close the socket without the closing handshake."""
        if self._client is not None:
            self._abort_task = asyncio.create_task(self._client.close())


def transport_for(url: str, *, tls_only: bool = False) -> TcpSocket | WebSocket:
    """Return an unconnected transport for a server's URL.

    ``tls_only`` has no effect on a WebSocket, because its scheme decides about TLS.
    """
    return WebSocket() if url.startswith("ws") else TcpSocket(tls_only=tls_only)


async def within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine for ``seconds``, then cancel it, and again if it runs on for as long. Errors are ignored."""
    # In a task, because nats-py cancels all waiters for the end of a transport together with one of them.
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.cancel():
            await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
