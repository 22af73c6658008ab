"""The supervised NATS connection. The only file that imports ``nats``, and that touches its private parts.

Every connection is a nats-py client of its own that does not reconnect: when it ends, however it
ends, a new one takes its place, and the listener subscribes again. nats-py's own reconnecting would
hide the moment before the first message of the new connection, and it does not come back at all
after most ``-ERR`` lines, nor after an exception in its read loop.

Messages of the bridge's own subscriptions are taken over in nats-py's read loop: no task or queue
for each subscription, and the order across subscriptions stays. What runs there must not raise, or
the loop would end. Private names of nats-py that are used: ``_ps``, ``_reading_task``, ``_sid``,
``_pongs``, ``_pongs_received``, ``_pings_outstanding``, ``_transport``, ``_close``, ``_process_msg``,
``_process_ping``, ``_process_err``, ``_process_info``; the bound on its version is in pyproject.toml.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

import nats.errors
from nats.aio.client import Client

from .nats_parser import MalformedLineError, Parser
from .nats_servers import Server, ServerPool
from .settings import Settings

__all__ = ["LinkListener", "NatsClient", "NatsLink"]

NatsClient: TypeAlias = Client

# Below "sanic.root", so that its lines appear in Sanic's log and follow its settings.
logger = logging.getLogger("sanic.root.nats_bridge")

_MAX_OUTSTANDING_PINGS: Final = 2
_SECOND_TRY_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 2.0

_DENIED: Final = "-ERR 'Permissions Violation for Subscription to "
_TOO_MANY: Final = "maximum subscriptions exceeded"
_CAUSED_BY_SUBJECT: Final = ("maximum control line", "invalid subject", "parser error", "protocol operation")


class LinkListener(Protocol):
    """What the link tells, and to whom; ``sink`` is what was handed to `NatsLink.subscribe`."""

    def dispatch(self, sink: Any, subject: bytes, headers: bytes, payload: bytes) -> None:
        """A message has arrived."""

    def confirmed(self, sink: Any) -> None:
        """The server has the subscription."""

    def refused(self, sink: Any) -> None:
        """The server does not have the subscription, or has it no longer."""

    def link_up(self) -> None:
        """A new connection stands; nothing is subscribed on it."""

    def link_down(self) -> None:
        """The connection has ended, and every subscription with it."""


class _Confirmation:
    """Waits in nats-py's list of PINGs for the PONG that answers the SUB before it."""

    def __init__(self, sid: int) -> None:
        self.sid = sid


class _Connection(Client):
    """One connection to one server, from its CONNECT until it ends."""

    def __init__(self, listener: LinkListener) -> None:
        super().__init__()
        self.over = asyncio.Event()
        self.cause: Exception | None = None
        self._listener = listener
        self._followed: dict[int, tuple[str, Any]] = {}
        self._ps: Any = Parser(self)

    async def open(self, **options: Any) -> None:
        """Connect.

        Raises:
            Exception: Whatever nats-py or the network has to say; `cause` is nearer to the reason.
        """
        await self.connect(error_cb=self._note_error, **options)
        # Whatever ends a connection ends its read loop, an exception in it included.
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self.over.set())

    def follow(self, pattern: str, sink: Any) -> int:
        """Send SUB, and a PING whose PONG says that the server has taken it."""
        # Written at once and together: nats-py's own PING overtakes a SUB that waits for its flusher.
        self._sid += 1
        self._followed[self._sid] = (pattern, sink)
        self._pongs.append(cast(Any, _Confirmation(self._sid)))
        self._send(b"SUB %b %d\r\nPING\r\n" % (pattern.encode(), self._sid))
        return self._sid

    def unfollow(self, sid: int) -> None:
        """Send UNSUB; what is still under way is left out."""
        if self._followed.pop(sid, None):
            self._send(b"UNSUB %d\r\n" % sid)

    def _send(self, line: bytes) -> None:
        if self._transport is not None:
            self._transport.write(line)

    def message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> bool:
        followed = self._followed.get(sid)
        if followed is None:
            return False
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(payload)
        try:
            self._listener.dispatch(followed[1], subject, headers, payload)
        except Exception:
            logger.exception("A message from NATS could not be delivered")
        return True

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        try:
            await self._process_msg(sid, subject, reply, payload, headers)
        except Exception:
            # It would end nats-py's read loop, in silence.
            logger.exception("A message for the app's own NATS subscription could not be read")

    async def control(self, line: bytes) -> None:
        if line.startswith(b"PONG"):
            self._pong()
        elif line.startswith(b"PING"):
            await self._process_ping()
        elif line.startswith(b"-ERR"):
            await self._error(line)
        elif line.startswith(b"INFO "):
            await self._process_info(json.loads(line[5:]))
        elif not line.startswith(b"+OK"):
            raise MalformedLineError("an unknown operation")

    def _pong(self) -> None:
        self._pongs_received += 1
        self._pings_outstanding = 0
        waiter = self._pongs.pop(0) if self._pongs else None
        if isinstance(waiter, _Confirmation):
            if waiter.sid in self._followed:
                self._listener.confirmed(self._followed[waiter.sid][1])
        # A future that its waiter has given up would raise.
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    async def _error(self, line: bytes) -> None:
        written = line.decode("utf-8", "replace")
        if written.startswith(_DENIED):
            denied = [sid for sid, (pattern, _) in self._followed.items() if _names(written, pattern)]
            if self._refuse(denied):
                return
        text = written.lower()
        # What comes before a PONG is about the SUB before its PING.
        unconfirmed = [waiter.sid for waiter in self._pongs if isinstance(waiter, _Confirmation)][:1]
        if _TOO_MANY in text and self._refuse(unconfirmed):
            return  # nats-py would close for good; the server has only left that SUB out
        if any(cause in text for cause in _CAUSED_BY_SUBJECT):
            self._refuse(unconfirmed)
        await self._process_err(text.removeprefix("-err").strip())

    def _refuse(self, sids: Sequence[int]) -> bool:
        refused = [self._followed.pop(sid)[1] for sid in sids if sid in self._followed]
        for sink in refused:
            self._listener.refused(sink)
        return bool(refused)

    async def _note_error(self, error: Exception) -> None:
        self.cause = error
        if isinstance(error, nats.errors.SlowConsumerError):
            logger.warning("The app's own subscription to '%s' is too slow: NATS messages are lost", error.subject)
        elif self.is_connected:
            logger.warning("%s", _words(error))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self.over.set()
        await super()._close(status, do_cbs)


class NatsLink:
    """Keeps one connection to NATS, for as long as it is started."""

    def __init__(self, settings: Settings) -> None:
        self.on_connected: Callable[[], None] | None = None
        self._settings = settings
        self._connection: _Connection | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._servers = ServerPool(settings.servers)

    @property
    def client(self) -> Client | None:
        """The live nats-py client; ``None`` while there is none."""
        return self._connection

    def start(self, listener: LinkListener) -> None:
        """Begin to connect, in the background; the listener hears what comes of it."""
        self._supervisor = asyncio.create_task(self._supervise(listener), name="natsbridge-link")

    async def stop(self) -> None:
        """Drain the connection, close it, and connect no more."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.drain(), _STOP_SECONDS)
            await _closed(connection)

    def subscribe(self, pattern: str, sink: Any) -> int | None:
        """Send the SUB for a valid pattern; returns its number, or ``None`` while NATS is away."""
        return None if self._connection is None else self._connection.follow(pattern, sink)

    def unsubscribe(self, sid: int) -> None:
        """Send the UNSUB; nothing more comes for it."""
        if self._connection is not None:
            self._connection.unfollow(sid)

    async def _supervise(self, listener: LinkListener) -> None:
        while True:
            connection = await self._connect(listener)
            self._connection = connection
            listener.link_up()
            if self.on_connected is not None:
                self.on_connected()
            await connection.over.wait()
            self._connection = None
            self._servers.discover(uri.geturl() for uri in connection.discovered_servers)
            logger.warning("Lost NATS: %s", _words(connection.last_error or connection.cause or EOFError()))
            listener.link_down()
            await _closed(connection)

    async def _connect(self, listener: LinkListener) -> _Connection:
        told = False
        for server, pause in self._servers.attempts():
            connection = _Connection(listener)
            try:
                async with asyncio.timeout(self._settings.connect_timeout):
                    await connection.open(**self._options(server))
            except Exception as error:
                await _closed(connection)
                if not told:
                    reason = _words(connection.cause or error)
                    logger.warning("NATS is away (%s: %s); trying until it is there", server.address, reason)
                    told = True
                await asyncio.sleep(pause)
            except BaseException:
                await _closed(connection)
                raise
            else:
                logger.info("Connected to NATS at %s", server.address)
                return connection
        raise AssertionError("there is always a next attempt")

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
            "ping_interval": settings.ping_interval,
            "max_outstanding_pings": _MAX_OUTSTANDING_PINGS,
            "allow_reconnect": False,
            # nats-py tries a server once more than this before it gives the list up.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": _SECOND_TRY_SECONDS,
        }


def _names(denial: str, pattern: str) -> bool:
    # The server quotes it as Go does.
    quoted = pattern.replace("\\", "\\\\").replace('"', '\\"')
    return denial.startswith(f'{_DENIED}"{quoted}"')


async def _closed(connection: _Connection) -> None:
    with contextlib.suppress(Exception):
        await asyncio.wait_for(connection.close(), _STOP_SECONDS)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
