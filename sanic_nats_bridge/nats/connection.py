"""A connection to a NATS server. No other module uses private names of nats-py's client.

Messages for the bridge's own subscriptions are dispatched inside nats-py's read loop. They need no task or queue per
subscription, and they keep their order across subscriptions. Code that runs there must not raise, because an exception
would end the loop.

`compatibility.CLIENT_PARTS` has the private names of nats-py that are used.
"""

import asyncio
import contextlib
import json
import logging
import math
import secrets
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

import nats.errors
from nats.aio.client import Client

from .addresses import Addresses
from .parser import MalformedLineError, Parser
from .server_errors import classify_error, sub_length
from .transport import TcpSocket, WebSocket, transport_for, within

__all__ = ["QUEUE_PREFIX", "Connection", "ControlListener", "MessageListener", "NatsClient"]

NatsClient: TypeAlias = Client

# A child of "sanic.root", so that its records get the handlers and the level of Sanic's log.
logger = logging.getLogger("sanic.root.nats_bridge")


QUEUE_PREFIX = "natsbridge"
"""The first token of the names of queue groups."""

_REPEAT_SECONDS = 60.0
_MAX_LOGGED_ERRORS = 100


class MessageListener(Protocol):
    """Callbacks for the messages and the state of subscriptions.

    ``sink`` is the object that was passed to `Connection.add_subscription`.
    """

    @property
    def on_message(self) -> Callable[[Any, bytes, bytes, bytes], None]:
        """Callback for each message: sink, subject, headers, payload."""

    def delivery_failed(self, sink: Any) -> None:
        """Note that a message is lost, because `on_message` has raised."""

    def confirmed(self, sink: Any) -> None:
        """Note that the server has the subscription."""

    def refused(self, sink: Any) -> None:
        """Note that the server has refused or ended the subscription."""


class ControlListener(Protocol):
    """Callbacks for one subscription of the control channel. They must not raise."""

    def on_message(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Process a message."""

    def confirmed(self) -> None:
        """Note that the server has the subscription."""

    def refused(self) -> None:
        """Note that the server has refused or ended the subscription."""


class _Confirmation:
    """Entry in nats-py's list of awaited PONGs, for the PONG that confirms a SUB."""

    def __init__(self, sid: int) -> None:
        self.sid = sid


class _Removal:
    """Entry in nats-py's list of awaited PONGs, for the PONG after which a removed SUB gets no more messages."""

    def __init__(self, sid: int) -> None:
        self.sid = sid


class _HealthPing:
    """Entry in nats-py's list of awaited PONGs, for a PING that only checks the server."""


class Connection(Client):
    """A connection to one server, which never reconnects.

    Args:
        listener: The callbacks for messages and subscriptions.
        address: Host and port of the server, as `ServerPool.others` compares them.
        tls_only: Whether to send nothing to a server without TLS.
        addresses: The addresses of host names that earlier connections have tried.
    """

    def __init__(
        self,
        listener: MessageListener,
        address: str = "",
        *,
        tls_only: bool = False,
        addresses: Addresses | None = None,
    ) -> None:
        super().__init__()
        self.address = address
        self.tls_only = tls_only
        self._addresses = addresses or Addresses()
        self.ended = asyncio.Event()
        """Set when no more messages arrive."""
        self.needs_replacement = asyncio.Event()
        """Set with `ended`, or before it when the server enters lame duck mode."""
        self.has_served = False
        """True once the server had answered everything that it was asked: every subscription, and a PING."""
        self.reports_no_responders = False
        """True if the server replies to a request that has no subscriber, which needs headers."""
        self.unanswered_pings = 0
        self.reported_error: Exception | None = None
        """The last error that nats-py has reported to its error callback."""
        self.refused_length = math.inf
        """The smallest `sub_length` that the server is known to refuse."""
        self._abandon_reason: str | None = None
        self._closed = asyncio.Event()
        self._listener = listener
        # Bound to Hub.on_message, which is bound to Broadcaster.on_message: no call in between per message.
        self.on_message = listener.on_message
        self.sinks: dict[bytes, Any] = {}
        """The bridge's own subscriptions. The keys are their numbers as the server writes them."""
        self._controls: dict[int, ControlListener] = {}
        """The subscriptions of the control channel, apart from `sinks`, whose messages must cost no distinction."""
        self._patterns: dict[int, str] = {}
        # No other connection may be in the groups of this one, not even the one before, which NATS may not miss yet.
        self._queue_prefix = f"{QUEUE_PREFIX}.{secrets.token_hex(8)}."
        self._queues: dict[int, str] = {}
        """The queue groups of the subscriptions that are in one."""
        self._logged_errors: dict[str, float] = {}
        """Times of the loop at which errors of the server were logged."""
        self._slow_sids: set[int] = set()
        """The app's own subscriptions that were logged as slow consumers."""
        self._ps: Any = Parser(self)

    async def open(self, **options: Any) -> None:
        """Connect with the options of nats-py's ``connect``.

        Raises:
            Exception: Any error of nats-py or of the network. `reported_error` is often closer to the reason.
        """
        self._transport = transport_for(options["servers"], self._addresses, tls_only=self.tls_only)
        await self.connect(error_cb=self._on_error, **options)
        if not self.is_connected:
            # nats-py accepts a reply that is neither PONG nor -ERR, but then never sends published messages.
            raise nats.errors.Error("the server did not answer CONNECT")
        if isinstance(self._transport, TcpSocket):
            self._transport.proven()
        # The read loop ends with its connection, and with an exception in the loop itself.
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self._end())

    @property
    def end_reason(self) -> str:
        """The reason for which the connection has ended or must be replaced, for the log."""
        if self._abandon_reason is not None:
            return self._abandon_reason
        if self.needs_replacement.is_set() and not self.ended.is_set():
            return "the server is in lame duck mode"
        reason = self.last_error or self.reported_error
        return _describe(reason) if reason else "the connection was closed"

    @property
    def encrypted(self) -> bool:
        """True if the TLS handshake of a TCP socket was done."""
        return isinstance(self._transport, TcpSocket) and self._transport.encrypted

    @property
    def reads(self) -> int:
        """Number of reads that have returned data."""
        reads: int = self._ps.reads
        return reads

    def ping(self) -> None:
        """Send a PING. It counts as unanswered until its PONG arrives."""
        self.unanswered_pings += 1
        self._pongs.append(cast(Any, _HealthPing()))
        self._send(b"PING\r\n")

    def abandon(self, reason: str) -> None:
        """End the connection without notifying the server, which doesn't respond."""
        self._abandon_reason = reason
        self.abort()
        self._end()

    def abort(self) -> None:
        """Close the socket at once and drop its unsent data."""
        if isinstance(self._transport, TcpSocket | WebSocket):
            self._transport.abort()

    async def drain_and_close(self, seconds: float) -> None:
        """Drain, then close. Each step takes at most ``seconds``."""
        try:
            await within(seconds, self.drain())
        except BaseException:
            self.abort()
            raise
        await self.close_within(seconds)

    async def close_within(self, seconds: float) -> None:
        """Close the connection, or wait for a close in progress. Data that isn't sent after ``seconds`` is lost."""
        try:
            await within(seconds, self._close_and_wait())
        finally:
            self.abort()

    async def _close_and_wait(self) -> None:
        await self.close()
        await self._closed.wait()

    def _end(self) -> None:
        self.ended.set()
        self.needs_replacement.set()

    def add_subscription(self, pattern: str, sink: Any, group: int = 0) -> int:
        """Send SUB, and a PING whose PONG confirms it; return the subscription's number.

        A SUB that is known to be too long for the server isn't sent, but refused. Of all subscriptions in one group
        that match a message, the server sends it to one.
        """
        self._sid += 1
        self.sinks[b"%d" % self._sid] = sink
        if group:
            self._queues[self._sid] = f"{self._queue_prefix}{group}"
        self._subscribe(pattern, self._sid)
        return self._sid

    def add_control_subscription(self, subject: str, listener: ControlListener) -> int:
        """Subscribe to a control subject as `add_subscription` does, and return the subscription's number."""
        self._sid += 1
        self._controls[self._sid] = listener
        self._subscribe(subject, self._sid)
        return self._sid

    def _subscribe(self, pattern: str, sid: int) -> None:
        self._patterns[sid] = pattern
        queue = self._queues.get(sid, "")
        if sub_length(pattern, sid, queue) >= self.refused_length:
            asyncio.get_running_loop().call_soon(self._refuse, sid)
            return
        # Written at once and together, because nats-py's own PING overtakes a SUB that waits for its flusher.
        self._pongs.append(cast(Any, _Confirmation(sid)))
        subject = f"{pattern} {queue}" if queue else pattern
        self._send(b"SUB %b %d\r\nPING\r\n" % (subject.encode(), sid))

    def remove_subscription(self, sid: int) -> None:
        """Send UNSUB. Messages that are still on the way are dropped, except those of a queue group.

        NATS has sent them to this subscription instead of others of the group.
        """
        if self._patterns.pop(sid, None) is None:
            return
        if self._queues.pop(sid, None) is not None:
            self._pongs.append(cast(Any, _Removal(sid)))
            self._send(b"UNSUB %d\r\nPING\r\n" % sid)
            return
        self.sinks.pop(b"%d" % sid, None)
        self._controls.pop(sid, None)
        self._send(b"UNSUB %d\r\n" % sid)

    def _send(self, line: bytes) -> None:
        # A closing transport raises with uvloop. The next connection sends the subscriptions again.
        with contextlib.suppress(RuntimeError):
            if self._transport is not None:
                self._transport.write(line)

    def delivery_failed(self, sink: Any, error: Exception) -> None:
        """Log an exception of `on_message`, and report the lost message to the listener. Never raises."""
        logger.error("Cannot deliver a message from NATS; its subscribers get a gap", exc_info=error)
        try:
            self._listener.delivery_failed(sink)
        except Exception:
            # An exception would end nats-py's read loop without a log record.
            logger.exception("Cannot report a lost message to its subscribers")

    def received(self, messages: int, size: int) -> None:
        """Count the bridge's own messages as nats-py counts those of the app."""
        self.stats["in_msgs"] += messages
        self.stats["in_bytes"] += size

    async def foreign_message(self, sid: int, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        """Pass a message to the control channel, or to nats-py if the subscription is the app's own. Never raises."""
        control = self._controls.get(sid)
        if control is not None:
            control.on_message(subject, reply, headers, payload)
            return
        try:
            await self._process_msg(sid, subject, reply, payload, headers)
        except Exception:
            # An exception would end nats-py's read loop without a log record.
            logger.exception("Cannot deliver a message to the app's own NATS subscription; the message is lost")

    async def control(self, line: bytes) -> None:
        """Process a line without a payload.

        Raises:
            MalformedLineError: The line isn't part of the NATS protocol.
        """
        if line.startswith(b"PONG"):
            self._on_pong()
        elif line.startswith(b"PING"):
            await self._process_ping()
        elif line.startswith(b"-ERR"):
            await self._on_err_line(line)
        elif line.startswith(b"INFO "):
            await self._on_info(json.loads(line[5:]))
        elif not line.startswith(b"+OK"):
            raise MalformedLineError("unknown operation")

    async def _on_info(self, info: Any) -> None:
        await self._process_info(info)
        if info.get("ldm"):
            # Lame duck mode: the server accepts no new connections, and closes the present ones one by one.
            self.needs_replacement.set()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        self.reports_no_responders = bool(info.get("headers"))
        if self.tls_only and info.get("tls_available"):
            # nats-py uses TLS only if the server requires it.
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _on_pong(self) -> None:
        self._pongs_received += 1
        self._pings_outstanding = 0
        waiter = self._pongs.pop(0) if self._pongs else None
        self.has_served = self.has_served or not self._pongs
        if isinstance(waiter, _Confirmation):
            self._confirm(waiter.sid)
        elif isinstance(waiter, _Removal):
            self.sinks.pop(b"%d" % waiter.sid, None)
        elif isinstance(waiter, _HealthPing):
            self.unanswered_pings -= 1
        # A cancelled future would raise.
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    def _confirm(self, sid: int) -> None:
        if sid in self._controls:
            self._controls[sid].confirmed()
        elif sid in self._patterns:
            self._listener.confirmed(self.sinks[b"%d" % sid])

    async def _on_err_line(self, line: bytes) -> None:
        decoded = line.decode("utf-8", "replace")
        unconfirmed = next((waiter.sid for waiter in self._pongs if isinstance(waiter, _Confirmation)), None)
        effect = classify_error(decoded, self._patterns, unconfirmed, self._queues)
        self.refused_length = min(self.refused_length, effect.refused_length)
        for sid in effect.refused:
            self._refuse(sid)
        message = decoded.removeprefix("-ERR").strip()
        if not effect.connection_survives:
            # nats-py compares in lower case.
            await self._process_err(message.lower())
        elif not effect.refused:
            self._log_error(message)

    def _log_error(self, message: str) -> None:
        """Log an error of the server, unless it was logged within the last minute."""
        now = asyncio.get_running_loop().time()
        if now < self._logged_errors.get(message, -math.inf) + _REPEAT_SECONDS:
            return
        if len(self._logged_errors) >= _MAX_LOGGED_ERRORS:
            self._logged_errors.clear()
        self._logged_errors[message] = now
        logger.warning("The NATS server reported an error: %s", message)

    def _refuse(self, sid: int) -> None:
        control, sink = self._controls.get(sid), self.sinks.get(b"%d" % sid)
        self.remove_subscription(sid)
        if control is not None:
            control.refused()
        elif sink is not None:
            self._listener.refused(sink)

    async def _on_error(self, error: Exception) -> None:
        self.reported_error = error
        if isinstance(error, nats.errors.SlowConsumerError):
            # nats-py reports it for each message that it drops.
            if error.sid not in self._slow_sids:
                self._slow_sids.add(error.sid)
                logger.warning(
                    "Slow consumer: messages of the app's own NATS subscription to %a are dropped; "
                    "speed up its handler or raise its pending limits",
                    error.subject,
                )
        elif self.is_connected and not isinstance(error, nats.errors.UnexpectedEOF):
            logger.warning("nats-py reported an error: %s", _describe(error))

    async def drain(self) -> None:
        """Drain as nats-py does. The connection counts as ended afterwards, even if that fails."""
        if self.is_draining:
            return
        try:
            await super().drain()
        finally:
            self._end()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self.is_closed:
            return
        self._end()
        # Messages that remain in the read buffer must not be delivered any more.
        self.sinks.clear()
        self._controls.clear()
        self._patterns.clear()
        self._queues.clear()
        try:
            await super()._close(status, do_cbs)
        finally:
            self._closed.set()


def _describe(error: BaseException) -> str:
    if isinstance(error, nats.errors.UnexpectedEOF):
        return "the server closed the connection"
    return str(error) or type(error).__name__
