"""The sockets of a NATS connection: nats-py's transports with other read sizes, write times and ways to close.

Private names of nats-py's transports that are used: ``_bare_io_reader``, ``_bare_io_writer``, ``_io_reader``,
``_io_writer`` (TCP), ``_client``, ``_ws``, ``_using_tls`` (WebSocket).
"""

import asyncio
import contextlib
import ssl
from collections.abc import Coroutine, Iterable
from typing import Any

from nats.aio.transport import TcpTransport, WebSocketTransport

from .addresses import Address, Addresses

__all__ = ["TcpSocket", "WebSocket", "transport_for", "within"]

_READ_BYTES = 512 * 1024
_MAX_GREETING_BYTES = 1024 * 1024
_MAX_FRAME_BYTES = 128 * 1024 * 1024
"""The largest WebSocket message. A server puts all that waits for a client into one: 64 MiB by default."""


class TcpSocket(TcpTransport):
    """A TCP or TLS socket with larger reads than nats-py's, and one write per turn of the event loop.

    Larger reads mean fewer writes to each client of the bridge. A second write in the same turn could fail because the
    server has closed meanwhile. asyncio would then drop the ``-ERR`` that gives the reason.

    Args:
        addresses: Connects to the addresses of a host name.
        tls_only: Whether to write nothing before the TLS handshake is done.
    """

    def __init__(self, addresses: Addresses, *, tls_only: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._addresses = addresses
        self._address: Address | None = None
        self.aborted = False
        self.encrypted = False
        self._awaits_tls = tls_only
        self._unsent: list[bytes] = []
        self._unsent_size = 0

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Connect, with a buffer for a large read. ``buffer_size`` is ignored."""
        connected, self._address = await self._addresses.connect(uri.hostname, uri.port, connect_timeout)
        reader, writer = await asyncio.open_connection(sock=connected, limit=_READ_BYTES)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Do the TLS handshake on the connected socket. ``buffer_size`` is ignored."""
        assert self._io_writer is not None
        loop = asyncio.get_running_loop()
        name = uri if isinstance(uri, str) else uri.hostname
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        protocol = _TlsReaderProtocol(reader)
        async with asyncio.timeout(connect_timeout):
            transport = await loop.start_tls(self._io_writer.transport, protocol, ssl_context, server_hostname=name)
        assert transport is not None
        self._io_reader = reader
        self._io_writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._awaits_tls = False
        self.encrypted = True

    def proven(self) -> None:
        """Note that the peer is a NATS server."""
        if self._address is not None:
            self._addresses.proven(self._address)

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
        self._unsent_size += len(payload)

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that were written, but not yet accepted by the network."""
        buffered = 0 if self._io_writer is None else self._io_writer.transport.get_write_buffer_size()
        return self._unsent_size + buffered

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Write all parts, in their order, at the end of this turn of the event loop."""
        self.write(b"".join(payload))

    async def drain(self) -> None:
        """Wait until the write buffer is below its limit."""
        self._send()
        await super().drain()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write the remaining bytes, then close."""
        if self._io_writer is not None:
            self._send()
            super().close()  # type: ignore[no-untyped-call]

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        self._unsent_size = 0
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
        if self._io_writer is not None and not self.aborted:
            await super().wait_closed()  # type: ignore[no-untyped-call]

    def at_eof(self) -> bool:
        """Return whether no more bytes arrive."""
        return self._io_reader is None or self._io_reader.at_eof()

    def __bool__(self) -> bool:
        # nats-py would replace a transport that is false because it isn't connected yet.
        return True


class _TlsReaderProtocol(asyncio.StreamReaderProtocol):
    """The protocol of a reader whose transport was changed to TLS."""

    def eof_received(self) -> bool:
        """Process the end of the stream."""
        super().eof_received()
        # asyncio's protocol asks to keep the connection half open, because it doesn't know of the TLS that began later.
        # asyncio then logs a warning at the end of each connection.
        return False


class WebSocket(WebSocketTransport):
    """A WebSocket that sends written bytes at once. nats-py's only queues them.

    Its connection is made here, because nats-py before 2.15 accepts no message over 4 MiB and takes an error of the
    connection for data.
    """

    def __init__(self) -> None:
        super().__init__()
        self.greeted = False
        """True once the server has sent INFO and has accepted the login."""
        self.unsent_bytes = 0
        """The number of bytes written since all of them were accepted by the network; no less than those that wait."""
        self._drain_task: asyncio.Task[None] | None = None
        self._abort_task: asyncio.Task[None] | None = None

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        """Connect without TLS. ``buffer_size`` and ``connect_timeout`` are ignored."""
        self._ws = await self._client.ws_connect(uri.geturl(), max_msg_size=_MAX_FRAME_BYTES)
        self._using_tls = False

    async def connect_tls(self, uri: Any, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int) -> None:
        """Connect with TLS, unless the connection has it. ``buffer_size`` and ``connect_timeout`` are ignored."""
        if self._ws is None:
            self._ws = await self._client.ws_connect(uri.geturl(), max_msg_size=_MAX_FRAME_BYTES, ssl=ssl_context)
            self._using_tls = True

    async def readline(self) -> bytes:
        """Return the next message; empty at the end of the connection.

        Raises:
            ConnectionError: A message of the login is too large.
        """
        assert self._ws is not None
        data = (await self._ws.receive()).data
        if not isinstance(data, bytes):
            return b""
        if len(data) > _MAX_GREETING_BYTES and not self.greeted:
            raise ConnectionError("line too long")
        return data

    async def wait_closed(self) -> None:
        """Wait until the socket is closed."""
        # nats-py before 2.16 would wait indefinitely after a failed handshake.
        if self._ws is not None:
            await super().wait_closed()  # type: ignore[no-untyped-call]
        elif self._client is not None:
            await self._client.close()

    def write(self, payload: bytes) -> None:
        """Queue the bytes, and start to send the queue."""
        super().write(payload)  # type: ignore[no-untyped-call]
        self.unsent_bytes += len(payload)
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = asyncio.create_task(self._send_queued())

    async def _send_queued(self) -> None:
        with contextlib.suppress(Exception):  # the read loop gets the same error
            await self.drain()  # type: ignore[no-untyped-call]
            self.unsent_bytes = 0

    def abort(self) -> None:
        """Close the socket without the closing handshake."""
        if self._client is not None:
            self._abort_task = asyncio.create_task(self._client.close())


def transport_for(url: str, addresses: Addresses, *, tls_only: bool = False) -> TcpSocket | WebSocket:
    """Return an unconnected transport for a server's URL.

    ``tls_only`` has no effect on a WebSocket, because its scheme decides about TLS.
    """
    return WebSocket() if url.startswith("ws") else TcpSocket(addresses, tls_only=tls_only)


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
