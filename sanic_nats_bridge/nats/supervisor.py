"""The supervised connection to NATS.

Each connection is a nats-py client that doesn't reconnect. When it ends for any reason, a new one replaces it, and the
listener subscribes again. nats-py's own reconnect would hide the moment before the first message of the new
connection. It also doesn't reconnect after most ``-ERR`` lines or after an exception in its read loop.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any, Protocol

from ..log_limits import limited_logger
from ..settings import Settings
from .addresses import Addresses
from .connect_errors import describe
from .connection import Connection, NatsClient
from .credentials import read_credentials, read_nkey_seed, split_user_info
from .health import wait_until_stale
from .interfaces import ControlListener, MessageListener
from .line_filter import LineFilter, printable
from .parser import MAX_MESSAGE_BYTES
from .server_pool import Server, ServerPool

__all__ = ["ConnectionListener", "ConnectionSupervisor"]

logger = limited_logger()

_NATS_PY_PING_SECONDS = 86_400  # disables nats-py's own pinger
_RETRY_SECONDS = 0.05
_STOP_SECONDS = 2.0
_RECANCEL_SECONDS = 1.0


class ConnectionListener(MessageListener, Protocol):
    """Callbacks for messages, subscriptions and the state of the connection, implemented by Hub."""

    def connection_established(self) -> None:
        """Note that a new connection exists. It has no subscriptions yet."""

    async def subscribed(self) -> None:
        """Wait until every subscription was sent on the new connection."""

    def connection_closed(self) -> None:
        """Note that the connection and all its subscriptions have ended."""


class ConnectionSupervisor:
    """The one connection to NATS of a worker, which is replaced whenever it ends.

    Args:
        settings: The options of the bridge.
        on_established: Called for each new connection, before the listener subscribes.
        on_connected: Called for each new connection, after the listener has subscribed.
        on_closed: Called when a connection has ended.
        accepted_length: The length of messages that is accepted even if the server's ``max_payload`` is smaller.
        on_denied: Called with the subject of a message that the server hasn't accepted. A true result is not logged.
        purpose: The use of a further connection of the worker, for its name in the monitoring of NATS and in the log.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_established: Callable[[], None] = lambda: None,
        on_closed: Callable[[], None] = lambda: None,
        on_connected: Callable[[], None],
        accepted_length: int = 0,
        on_denied: Callable[[str], bool] = lambda subject: False,
        purpose: str = "",
    ) -> None:
        self._on_established = on_established
        self._on_closed = on_closed
        self._on_connected = on_connected
        self._on_denied = on_denied
        self._name = f"{settings.name}-{purpose}" if purpose else settings.name
        self._suffix = f" ({purpose})" if purpose else ""
        self._settings = settings
        self._connection: Connection | None = None
        self._successor: Connection | None = None
        """A connection to another server, made before the present one ends."""
        self._task: asyncio.Task[None] | None = None
        self._servers = ServerPool(settings.servers)
        self._addresses = Addresses()
        self._refused_length = math.inf
        """The smallest `Connection.refused_length` of all connections so far."""
        self._refused_line = math.inf
        """The same for the lines of messages."""
        self._accepted_length = accepted_length
        """The length of messages that is accepted although the server's ``max_payload`` is smaller."""
        self._failure_lines = LineFilter()
        self._error_lines = LineFilter()

    @property
    def client(self) -> NatsClient | None:
        """The connected nats-py client, or ``None`` while NATS is disconnected."""
        return self._connection

    @property
    def connection(self) -> Connection | None:
        """The connection, or ``None`` while NATS is disconnected. It is one that hasn't ended."""
        connection = self._connection
        return None if connection is None or connection.ended.is_set() else connection

    @property
    def open_server(self) -> str | None:
        """The address of the connected server if it requires no login."""
        return None if self._connection is None or self._connection.requires_login else self._connection.address

    @property
    def jetstream_domain(self) -> str:
        """The JetStream domain of the connected server; empty if it has none."""
        return "" if self._connection is None else self._connection.jetstream_domain

    def start(self, listener: ConnectionListener) -> None:
        """Start to connect, in the background."""
        self._task = asyncio.create_task(self._supervise(listener), name="natsbridge-nats")

    async def stop(self) -> None:
        """Stop reconnecting, then drain and close the connection."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            # One cancellation may not be enough. Before Python 3.12, `asyncio.wait_for`, which nats-py uses, loses a
            # cancellation that coincides with the end of the awaited future (bpo-37658).
            task.cancel()
            await asyncio.wait({task}, timeout=_RECANCEL_SECONDS)
        for connection in filter(None, (self._connection, self._successor)):
            await connection.drain_and_close(_STOP_SECONDS)
        self._connection = self._successor = None

    def subscribe(self, pattern: str, sink: Any, group: int = 0) -> int | None:
        """Send SUB for a valid pattern, in a queue group if its number isn't 0.

        Returns:
            The subscription's number, or ``None`` while NATS is disconnected.
        """
        return None if self._connection is None else self._connection.add_subscription(pattern, sink, group)

    def subscribe_control(self, subject: str, listener: ControlListener) -> int | None:
        """Send SUB for a control subject, as `subscribe` does."""
        return None if self._connection is None else self._connection.add_control_subscription(subject, listener)

    def unsubscribe(self, sid: int) -> None:
        """Send UNSUB for the subscription of this number.

        Its sink gets no more messages, except those that NATS has sent to it for its queue group before.
        """
        if self._connection is not None:
            self._connection.remove_subscription(sid)

    async def _supervise(self, listener: ConnectionListener) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection = self._successor or await self._connect(listener)
            self._connection, self._successor = connection, None
            connected_at = loop.time()
            _notify(self._on_established)
            _notify(listener.connection_established)
            await listener.subscribed()
            _notify(self._on_connected)
            await self._wait_for_end(connection, listener)
            self._connection = None
            logger.warning("Disconnected from NATS at %s: %s", self._shown(connection), connection.end_reason)
            self._remember_refused_length(connection)
            self._remember_refused_message(connection)
            _notify(self._on_closed)
            _notify(listener.connection_closed)
            await connection.close_within(_STOP_SECONDS)
            backoff = self._servers.backoff_after(loop.time() - connected_at, served=connection.has_served)
            if self._successor is None:
                await asyncio.sleep(backoff)

    def _remember_refused_length(self, connection: Connection) -> None:
        """Refuse subjects that are too long for the server on later connections too.

        Each of these would end a connection, and cost all clients a gap.
        """
        if connection.outgoing.refused_length < self._refused_line:
            self._refused_line = connection.outgoing.refused_length
            logger.warning(
                "The NATS server refuses messages whose subjects have about %d bytes or more, subjects for answers "
                "included. If clients publish on such subjects, raise max_control_line of the server, then restart the "
                "workers.",
                self._refused_line,
            )
        if connection.refused_length < self._refused_length:
            self._refused_length = connection.refused_length
            logger.warning(
                "The NATS server refuses subjects of about %d bytes or more. If clients need them, raise "
                "max_control_line of the server, then restart the workers.",
                self._refused_length,
            )

    def _remember_refused_message(self, connection: Connection) -> None:
        """Accept messages of such a length on later connections.

        They come from a server of the cluster with a larger ``max_payload``, or after a reload that has raised it,
        which the server doesn't announce. Else each of them would end a connection, and cost all clients a gap.
        """
        if connection.refused_message > self._accepted_length and connection.refused_message <= MAX_MESSAGE_BYTES:
            self._accepted_length = min(MAX_MESSAGE_BYTES, 1 << connection.refused_message.bit_length())
            logger.warning(
                "NATS sent a message of %d bytes, which is more than max_payload of the server. From now on up to %d "
                "bytes are accepted. Give all servers the same max_payload.",
                connection.refused_message,
                self._accepted_length,
            )

    async def _wait_for_end(self, connection: Connection, listener: ConnectionListener) -> None:
        """Wait until the connection has ended or has a successor."""
        loop = asyncio.get_running_loop()
        connected_at = loop.time()
        health_check = asyncio.create_task(
            _abandon_when_stale(connection, self._settings.ping_interval), name="natsbridge-health"
        )
        try:
            await connection.needs_replacement.wait()
            # A server that is always in lame duck mode must not be left at once, again and again.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._servers.wait_before_move(loop.time() - connected_at)):
                    await connection.ended.wait()
            self._servers.discover(uri.geturl() for uri in connection.discovered_servers)
            if not connection.ended.is_set():
                self._successor = await self._connect_successor(connection, listener)
            if self._successor is None:
                await connection.ended.wait()
        finally:
            health_check.cancel()

    async def _connect_successor(self, connection: Connection, listener: ConnectionListener) -> Connection | None:
        """Connect to another server while the present one, which is in lame duck mode, still sends."""
        for server in self._servers.others(connection.address):
            if connection.ended.is_set():
                break
            try:
                return await self._open(server, listener)
            except ConnectionError as error:
                logger.info("Cannot move to NATS at %s: %s", self._shown(server), error)
        return None

    async def _connect(self, listener: ConnectionListener) -> Connection:
        for server, pause in self._servers.attempts():
            try:
                return await self._open(server, listener)
            except ConnectionError as error:
                # Every reason, not only the first, because a rejected login may appear as a reset first.
                if self._failure_lines.allows(f"{server.address}: {error}"):
                    logger.warning("Cannot connect to NATS at %s: %s; retrying", self._shown(server), error)
                await asyncio.sleep(pause)
        raise AssertionError("attempts() never ends")

    async def _open(self, server: Server, listener: ConnectionListener) -> Connection:
        seconds = self._settings.connect_timeout
        connection = Connection(
            listener,
            server.address,
            tls_only=server.has_tls or self._settings.tls_only,
            addresses=self._addresses,
            error_lines=self._error_lines,
            ignore_discovered=self._settings.ignore_discovered_servers,
        )
        connection.refused_length = self._refused_length
        connection.outgoing.refused_length = self._refused_line
        connection.accepted_length = self._accepted_length
        connection.on_denied = self._on_denied
        try:
            async with asyncio.timeout(seconds):
                await connection.open(**self._options(server))
        except BaseException as error:
            connection.abort()
            await connection.close_within(_STOP_SECONDS)
            if not isinstance(error, Exception):
                raise
            reason = printable(describe(connection.reported_error or error, seconds, encrypted=connection.encrypted))
            raise ConnectionError(reason) from error
        logger.info("Connected to NATS at %s", self._shown(server))
        return connection

    def _shown(self, end: Connection | Server) -> str:
        return f"{end.address}{self._suffix}"

    def _options(self, server: Server) -> dict[str, Any]:
        settings = self._settings
        url, user, password = split_user_info(server.url)
        optional: dict[str, Any] = {
            "tls": settings.tls_context(),
            "tls_hostname": settings.tls_hostname or server.verified_name,
            "token": settings.token,
        }
        if settings.user is not None or settings.token is not None:
            optional |= {"user": settings.user, "password": settings.password}
        elif password is not None or settings.password is not None:
            optional |= {"user": user, "password": password or settings.password}
        else:
            # A URL without a password has the token in place of the user name.
            optional["token"] = user
        if settings.credentials is not None:
            optional["user_credentials"] = read_credentials(settings.credentials)
        if settings.nkeys_seed is not None:
            optional["nkeys_seed_str"] = read_nkey_seed(settings.nkeys_seed)
        return {name: value for name, value in optional.items() if value is not None} | {
            "servers": url,
            "name": self._name,
            "inbox_prefix": settings.inbox_prefix,
            "tls_handshake_first": settings.tls_handshake_first,
            "connect_timeout": settings.connect_timeout,
            "ping_interval": _NATS_PY_PING_SECONDS,
            "allow_reconnect": False,
            # nats-py makes one attempt more than this.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": _RETRY_SECONDS,
        }


def _notify(callback: Callable[[], None]) -> None:
    # The supervisor must survive an exception in a callback.
    try:
        callback()
    except Exception:
        logger.exception("A callback of the NATS connection failed")


async def _abandon_when_stale(connection: Connection, interval: float) -> None:
    connection.abandon(await wait_until_stale(connection, interval))
