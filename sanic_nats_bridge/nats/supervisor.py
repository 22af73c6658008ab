"""The supervised connection to NATS.

Every connection is a nats-py client of its own that does not reconnect: when it ends, however it
ends, a new one takes its place, and the listener subscribes again. nats-py's own reconnecting would
hide the moment before the first message of the new connection, and it does not come back at all
after most ``-ERR`` lines, nor after an exception in its read loop.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from ..settings import Settings
from .connection import Connection, MessageListener, NatsClient
from .health import wait_until_stale
from .server_pool import Server, ServerPool

__all__ = ["ConnectionListener", "ConnectionSupervisor"]

logger = logging.getLogger("sanic.root.nats_bridge")

_NEVER_SECONDS: Final = 86_400  # of nats-py's own pinger
_SECOND_TRY_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 2.0
_CANCEL_AGAIN_SECONDS: Final = 1.0
_STEADY_SECONDS: Final = 5.0


class ConnectionListener(MessageListener, Protocol):
    """Who is told of messages, and of connections that come and go."""

    def connection_established(self) -> None:
        """A new connection stands; nothing is subscribed on it."""

    def connection_closed(self) -> None:
        """The connection has ended, and every subscription with it."""


class ConnectionSupervisor:
    """Keeps one connection to NATS, for as long as it is started.

    Args:
        settings: The options of the bridge.
        on_connected: Called after each connection was established and the listener has subscribed.
    """

    def __init__(self, settings: Settings, on_connected: Callable[[], None]) -> None:
        self._on_connected = on_connected
        self._settings = settings
        self._connection: Connection | None = None
        self._successor: Connection | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._servers = ServerPool(settings.servers)
        self._too_long = math.inf

    @property
    def client(self) -> NatsClient | None:
        """The live nats-py client; ``None`` while there is none."""
        return self._connection

    def start(self, listener: ConnectionListener) -> None:
        """Begin to connect, in the background; the listener hears what comes of it."""
        self._supervisor = asyncio.create_task(self._supervise(listener), name="natsbridge-link")

    async def stop(self) -> None:
        """Drain the connection, close it, and connect no more."""
        supervisor, self._supervisor = self._supervisor, None
        while supervisor is not None and not supervisor.done():
            # One cancellation is not enough: `asyncio.wait_for`, which nats-py uses, loses one that
            # meets the end of what it waits for (bpo-37658, until Python 3.12).
            supervisor.cancel()
            await asyncio.wait({supervisor}, timeout=_CANCEL_AGAIN_SECONDS)
        for connection in filter(None, (self._connection, self._successor)):
            await connection.drain_and_close(_STOP_SECONDS)
        self._connection = self._successor = None

    def subscribe(self, pattern: str, sink: Any) -> int | None:
        """Send the SUB for a valid pattern; returns its number, or ``None`` while NATS is away."""
        return None if self._connection is None else self._connection.add_subscription(pattern, sink)

    def unsubscribe(self, sid: int) -> None:
        """Send the UNSUB; nothing more comes for it."""
        if self._connection is not None:
            self._connection.remove_subscription(sid)

    async def _supervise(self, listener: ConnectionListener) -> None:
        while True:
            connection = self._successor or await self._connect(listener)
            self._connection, self._successor = connection, None
            since = time.monotonic()
            _tell(listener.connection_established)
            _tell(self._on_connected)
            await self._outlast(connection, listener)
            self._connection = None
            logger.warning("Lost NATS: %s", connection.end_reason)
            self._learn(connection)
            _tell(listener.connection_closed)
            await connection.close_within(_STOP_SECONDS)
            if self._successor is not None or time.monotonic() - since >= _STEADY_SECONDS:
                self._servers.relax()
            else:
                await asyncio.sleep(self._servers.pause())

    def _learn(self, connection: Connection) -> None:
        """Ask none again for what is too long: whoever asks for it could cost all the others a gap each time."""
        if connection.too_long < self._too_long:
            self._too_long = connection.too_long
            logger.warning(
                "NATS takes no subject of about %d bytes or more (max_control_line): such are refused until a restart",
                self._too_long,
            )

    async def _outlast(self, connection: Connection, listener: ConnectionListener) -> None:
        """Wait until the connection is over, or another stands that takes its place."""
        watch = asyncio.create_task(_watch(connection, self._settings.ping_interval), name="natsbridge-health")
        try:
            await connection.must_be_replaced.wait()
            self._servers.discover(uri.geturl() for uri in connection.discovered_servers)
            if not connection.ended.is_set():
                self._successor = await self._move(connection, listener)
            if self._successor is None:
                await connection.ended.wait()
        finally:
            watch.cancel()

    async def _move(self, connection: Connection, listener: ConnectionListener) -> Connection | None:
        """Connect to another server while the present one, which is about to stop, still serves."""
        for server in self._servers.others(connection.address):
            if connection.ended.is_set():
                break
            try:
                return await self._open(server, listener)
            except ConnectionError as error:
                logger.info("NATS at %s takes nobody now: %s", server.address, error)
        return None

    async def _connect(self, listener: ConnectionListener) -> Connection:
        told: set[str] = set()
        for server, pause in self._servers.attempts():
            try:
                return await self._open(server, listener)
            except ConnectionError as error:
                # Each reason once: that of a refused login is often behind a reset connection.
                if str(error) not in told:
                    logger.warning("NATS is away (%s: %s); trying until it is there", server.address, error)
                    told.add(str(error))
                await asyncio.sleep(pause)
        raise AssertionError("there is always a next attempt")

    async def _open(self, server: Server, listener: ConnectionListener) -> Connection:
        connection = Connection(listener, server.address, tls_only=server.has_tls or self._settings.tls_only)
        connection.too_long = self._too_long
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await connection.open(**self._options(server))
        except BaseException as error:
            connection.abort()
            await connection.close_within(_STOP_SECONDS)
            if not isinstance(error, Exception):
                raise
            reason = connection.cause or error
            raise ConnectionError(str(reason) or type(reason).__name__) from error
        logger.info("Connected to NATS at %s", server.address)
        return connection

    def _options(self, server: Server) -> dict[str, Any]:
        settings = self._settings
        optional = {
            "user": settings.user,
            "password": settings.password,
            "token": settings.token,
            "user_credentials": settings.credentials,
            "nkeys_seed": settings.nkeys_seed,
            "tls": settings.tls_context(),
            "tls_hostname": settings.tls_hostname or server.verified_name,
        }
        return {name: value for name, value in optional.items() if value is not None} | {
            "servers": server.url,
            "name": settings.name,
            "inbox_prefix": settings.inbox_prefix,
            "tls_handshake_first": settings.tls_handshake_first,
            "connect_timeout": settings.connect_timeout,
            "ping_interval": _NEVER_SECONDS,
            "allow_reconnect": False,
            # nats-py tries a server once more than this before it gives the list up.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": _SECOND_TRY_SECONDS,
        }


def _tell(listener: Callable[[], None]) -> None:
    # The supervisor must outlive a fault of those that it tells.
    try:
        listener()
    except Exception:
        logger.exception("Fault in what follows the connection to NATS")


async def _watch(connection: Connection, interval: float) -> None:
    connection.abandon(await wait_until_stale(connection, interval))
