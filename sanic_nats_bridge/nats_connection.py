"""One connection to a NATS server. The only file that imports ``nats``, and that touches its private parts.

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
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeAlias, cast

import nats.errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport, WebSocketTransport

from .nats_parser import MalformedLineError, Parser

__all__ = ["Connection", "MessageListener", "NatsClient"]

NatsClient: TypeAlias = Client

# Below "sanic.root", so that its lines appear in Sanic's log and follow its settings.
logger = logging.getLogger("sanic.root.nats_bridge")

_READ_BYTES: Final = 512 * 1024
_DENIAL: Final = re.compile(
    r"""-ERR 'Permissions Violation for Subscription to (?P<pattern>"(?:[^"\\]|\\.)*")(?: \(sid "(?P<sid>\d+)"\))?'"""
)
_TOO_MANY: Final = "maximum subscriptions exceeded"
_CAUSED_BY_SUBJECT: Final = ("maximum control line", "invalid subject", "parser error", "protocol operation")


class MessageListener(Protocol):
    """Who takes what comes for subscriptions; ``sink`` is what was handed to `Connection.follow`."""

    def dispatch(self, sink: Any, subject: bytes, headers: bytes, payload: bytes) -> None:
        """A message has arrived."""

    def confirmed(self, sink: Any) -> None:
        """The server has the subscription."""

    def refused(self, sink: Any) -> None:
        """The server does not have the subscription, or has it no longer."""


class _Confirmation:
    """Waits in nats-py's list of PINGs for the PONG that answers the SUB before it."""

    def __init__(self, sid: int) -> None:
        self.sid = sid


class _Transport(TcpTransport):
    """Reads in larger portions than nats-py: what comes in one turn of the loop leaves in one write for each client."""

    async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, _READ_BYTES, connect_timeout)

    async def read(self, buffer_size: int) -> Any:
        return await super().read(_READ_BYTES)

    def __bool__(self) -> bool:
        # nats-py makes a transport of its own where there is none that is connected.
        return True


class Connection(Client):
    """One connection to one server, from its CONNECT until it ends."""

    def __init__(self, listener: MessageListener) -> None:
        super().__init__()
        self.over = asyncio.Event()
        self.cause: Exception | None = None
        self._listener = listener
        self.dispatch = listener.dispatch
        self.sinks: dict[bytes, Any] = {}
        self._patterns: dict[int, str] = {}
        self._slow: set[int] = set()
        self._draining: asyncio.Task[None] | None = None
        self._ps: Any = Parser(self)

    async def open(self, **options: Any) -> None:
        """Connect.

        Raises:
            Exception: Whatever nats-py or the network has to say; `cause` is nearer to the reason.
        """
        if not options["servers"].startswith("ws"):
            self._transport = _Transport()  # type: ignore[no-untyped-call]
        await self.connect(error_cb=self._note_error, **options)
        # Whatever ends a connection ends its read loop, an exception in it included.
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self.over.set())

    @property
    def lost_by(self) -> str:
        """Why the connection has ended, for the log."""
        reason = self.last_error or self.cause
        return _words(reason) if reason else "the connection has ended"

    def follow(self, pattern: str, sink: Any) -> int:
        """Send SUB, and a PING whose PONG says that the server has taken it."""
        # Written at once and together: nats-py's own PING overtakes a SUB that waits for its flusher.
        self._sid += 1
        self._patterns[self._sid] = pattern
        self.sinks[b"%d" % self._sid] = sink
        self._pongs.append(cast(Any, _Confirmation(self._sid)))
        self._send(b"SUB %b %d\r\nPING\r\n" % (pattern.encode(), self._sid))
        return self._sid

    def unfollow(self, sid: int) -> None:
        """Send UNSUB; what is still under way is left out."""
        if self._forget(sid) is not None:
            self._send(b"UNSUB %d\r\n" % sid)

    def _forget(self, sid: int) -> Any:
        self._patterns.pop(sid, None)
        return self.sinks.pop(b"%d" % sid, None)

    def _send(self, line: bytes) -> None:
        # A transport that is closing raises, on uvloop; what was to be sent is asked for again.
        with contextlib.suppress(RuntimeError):
            if self._transport is not None:
                self._transport.write(line)
        # nats-py's WebSocket transport only queues what is written.
        if isinstance(self._transport, WebSocketTransport) and (self._draining is None or self._draining.done()):
            self._draining = asyncio.create_task(self._drain_transport(self._transport))

    async def _drain_transport(self, transport: WebSocketTransport) -> None:
        with contextlib.suppress(Exception):  # the read loop hears of it too
            await transport.drain()  # type: ignore[no-untyped-call]

    def undelivered(self, error: Exception) -> None:
        """Log that the listener has failed on a message."""
        logger.error("A message from NATS could not be delivered", exc_info=error)

    def received(self, messages: int, size: int) -> None:
        """Count what came for the bridge as nats-py counts what comes for the app."""
        self.stats["in_msgs"] += messages
        self.stats["in_bytes"] += size

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Hand a message to nats-py, for a subscription of the app. Never raises."""
        try:
            await self._process_msg(sid, subject, reply, payload, headers)
        except Exception:
            # It would end nats-py's read loop, in silence.
            logger.exception("A message for the app's own NATS subscription could not be read")

    async def control(self, line: bytes) -> None:
        """Act on a line without a payload.

        Raises:
            MalformedLineError: It is not one of the protocol.
        """
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
            sink = self.sinks.get(b"%d" % waiter.sid)
            if sink is not None:
                self._listener.confirmed(sink)
        # A future that its waiter has given up would raise.
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    async def _error(self, line: bytes) -> None:
        written = line.decode("utf-8", "replace")
        if self._refuse(self._denied(written)):
            return
        text = written.lower()
        # What comes before a PONG is about the SUB before its PING.
        unconfirmed = [waiter.sid for waiter in self._pongs if isinstance(waiter, _Confirmation)][:1]
        if _TOO_MANY in text:
            # nats-py would close for good; the server has only left that SUB out.
            if not self._refuse(unconfirmed):
                logger.warning("NATS: %s", _TOO_MANY)
            return
        if any(cause in text for cause in _CAUSED_BY_SUBJECT):
            self._refuse(unconfirmed)
        await self._process_err(text.removeprefix("-err").strip())

    def _denied(self, line: str) -> list[int]:
        """Which of our subscriptions the line denies; after a reload of its permissions the server gives the number."""
        denial = _DENIAL.fullmatch(line)
        if denial is None:
            return []
        if denial["sid"]:
            return [int(denial["sid"])]
        return [sid for sid, pattern in self._patterns.items() if _quoted(pattern) == denial["pattern"]]

    def _refuse(self, sids: Sequence[int]) -> bool:
        refused = [sid for sid in sids if sid in self._patterns]
        for sid in refused:
            sink = self.sinks[b"%d" % sid]
            self.unfollow(sid)
            self._listener.refused(sink)
        return bool(refused)

    async def _note_error(self, error: Exception) -> None:
        self.cause = error
        if isinstance(error, nats.errors.SlowConsumerError):
            # nats-py says so of every message that it drops.
            if error.sid not in self._slow:
                self._slow.add(error.sid)
                logger.warning("The app's own subscription to %a is too slow: NATS messages are lost", error.subject)
        elif self.is_connected:
            logger.warning("%s", _words(error))

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self.over.set()
        # What is still in the buffer of the read loop comes too late.
        self.sinks.clear()
        self._patterns.clear()
        await super()._close(status, do_cbs)


def _quoted(pattern: str) -> str:
    """The pattern as the server quotes it, which is Go's way."""
    return '"' + pattern.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
