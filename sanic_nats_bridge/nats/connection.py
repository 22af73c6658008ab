"""A connection to a NATS server. No other module uses private names of nats-py's client.

Messages for the bridge's own subscriptions are dispatched inside nats-py's read loop. They need no task or queue per
subscription, and they keep their order across subscriptions. Code that runs there must not raise, because an exception
would end the loop.

`compatibility.CLIENT_PARTS` has the private names of nats-py that are used.
"""

import asyncio
import contextlib
import math
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, cast
from urllib.parse import ParseResult, urlparse

import nats.errors
from nats.aio.client import Client

from ..log_limits import limited_logger
from .addresses import Addresses
from .awaited_pongs import AwaitedPongs, Confirmation, HealthPing, Removal
from .interfaces import ControlListener, MessageListener
from .line_filter import LineFilter, printable
from .outgoing import Outgoing
from .parser import MAX_MESSAGE_BYTES, MalformedLineError, Parser
from .server_errors import classify_error
from .server_info import decode_info, domain_of, max_payload_of, usable_addresses
from .subscription_index import SubscriptionIndex, sub_length
from .transport import TcpSocket, WebSocket, transport_for, within

__all__ = ["QUEUE_PREFIX", "Connection", "NatsClient"]

NatsClient: TypeAlias = Client

logger = limited_logger()

QUEUE_PREFIX = "natsbridge"
"""The first token of the names of queue groups."""

_MAX_ERROR_BYTES = 4096  # a subject of 255 bytes, quoted, takes about a thousand
_REFUSALS_PER_TURN = 16


class Connection(Client):
    """A connection to one server, which never reconnects.

    Args:
        listener: The callbacks for messages and subscriptions.
        address: Host and port of the server, as `ServerPool.others` compares them.
        tls_only: Whether to send nothing to a server without TLS.
        addresses: The addresses of host names that earlier connections have tried.
        error_lines: The filter for log lines about errors that the server reports.
        ignore_discovered: Whether to ignore the other servers that INFO names.
    """

    def __init__(
        self,
        listener: MessageListener,
        address: str = "",
        *,
        tls_only: bool = False,
        addresses: Addresses | None = None,
        error_lines: LineFilter | None = None,
        ignore_discovered: bool = False,
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
        self.requires_login = True
        """True if the server requires credentials, or a client certificate."""
        self.jetstream_domain = ""
        """The JetStream domain of the server; empty if it has none."""
        self.unanswered_pings = 0
        self.reported_error: Exception | None = None
        """The last error that nats-py has reported to its error callback."""
        self.refused_length = math.inf
        """The smallest `sub_length` that the server is known to refuse."""
        self.abandon_reason: str | None = None
        """The bridge's own reason for ending the connection."""
        self._closed = asyncio.Event()
        self._listener = listener
        # Bound to Hub.on_message, which is bound to Broadcaster.on_message: no call in between per message.
        self.on_message = listener.on_message
        self.sinks: dict[bytes, Any] = {}
        """The bridge's own subscriptions. The keys are their numbers as the server writes them."""
        self.controls: dict[bytes, ControlListener] = {}
        """Subscriptions with reply subjects, apart from `sinks`, whose messages must cost no distinction."""
        self._patterns = SubscriptionIndex()
        # No other connection may be in the groups of this one, not even the one before, which NATS may not miss yet.
        self._queue_prefix = f"{QUEUE_PREFIX}.{secrets.token_hex(8)}."
        self._announced: list[str] = []
        """The addresses of the servers that the newest INFO has named."""
        self._failed = False
        """True after an error that ends the connection."""
        self._too_long: deque[int] = deque()
        """The numbers of subscriptions to refuse because the server would refuse their length."""
        self._error_lines = error_lines or LineFilter()
        self._ignore_discovered = ignore_discovered
        self.on_denied: Callable[[str], bool] = lambda subject: False
        """Called with the subject of a message that the server hasn't accepted. A true result is not logged."""
        self._slow_sids: set[int] = set()
        """The app's own subscriptions that were logged as slow consumers."""
        self.outgoing = Outgoing()
        self.publish_limit = 0
        """The largest number of bytes, headers included, that the server accepts in a message of the bridge."""
        self.accepted_length = 0
        """The length of the largest message that the bridge accepts: ``max_payload`` of the server, or more."""
        self.refused_message = 0
        """The length of the message that has ended the connection because it was too large."""
        self.parser = _ConnectionParser(self)
        self._ps: Any = self.parser

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
        # nats-py's list takes long to lose its first element if it has many.
        self._pongs = cast(Any, AwaitedPongs(self._pongs))
        if isinstance(self._transport, TcpSocket):
            self._transport.proven()
        elif isinstance(self._transport, WebSocket):
            self._transport.greeted = True
        # The read loop ends with its connection, and with an exception in the loop itself.
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self._end())

    @property
    def end_reason(self) -> str:
        """The reason for which the connection has ended or must be replaced, for the log."""
        if self.abandon_reason is not None:
            return self.abandon_reason
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
        return self.parser.reads

    def ping(self) -> None:
        """Send a PING. It counts as unanswered until its PONG arrives."""
        self.unanswered_pings += 1
        self._pongs.append(cast(Any, HealthPing()))
        self._send(b"PING\r\n")

    def abandon(self, reason: str) -> None:
        """End the connection without notifying the server, which doesn't respond."""
        self.abandon_reason = reason
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
        self._subscribe(f"{pattern} {self._queue_prefix}{group}" if group else pattern, self._sid)
        return self._sid

    def add_control_subscription(self, subject: str, listener: ControlListener) -> int:
        """Subscribe to a control subject as `add_subscription` does, and return the subscription's number."""
        self._sid += 1
        self.controls[b"%d" % self._sid] = listener
        self._subscribe(subject, self._sid)
        return self._sid

    def _subscribe(self, pattern: str, sid: int) -> None:
        self._patterns.add(sid, pattern)
        if sub_length(pattern, sid) >= self.refused_length:
            if not self._too_long:
                asyncio.get_running_loop().call_soon(self._refuse_too_long)
            self._too_long.append(sid)
            return
        # Written at once and together, because nats-py's own PING overtakes a SUB that waits for its flusher.
        cast(Any, self._pongs).await_confirmation(sid)
        self._send(b"SUB %b %d\r\nPING\r\n" % (pattern.encode(), sid))

    def remove_subscription(self, sid: int) -> None:
        """Send UNSUB. Messages that are still on the way are dropped, except those of a queue group.

        NATS has sent them to this subscription instead of others of the group.
        """
        if sid not in self._patterns:
            return
        is_grouped = " " in self._patterns[sid]
        self._patterns.discard(sid)
        if is_grouped:
            self._pongs.append(cast(Any, Removal(sid)))
            self._send(b"UNSUB %d\r\nPING\r\n" % sid)
            return
        self.sinks.pop(b"%d" % sid, None)
        self.controls.pop(b"%d" % sid, None)
        self._send(b"UNSUB %d\r\n" % sid)

    @property
    def unsent_bytes(self) -> int:
        """The number of bytes that were written, but not yet accepted by the network."""
        return self._transport.unsent_bytes if isinstance(self._transport, TcpSocket | WebSocket) else 0

    @property
    def refused_subject_length(self) -> float:
        """The smallest length of a subject and its subject for answers that the server is known to refuse."""
        return self.outgoing.refused_length

    def send_message(self, subject: bytes, payload: bytes, headers: bytes = b"", reply: bytes = b"") -> None:
        """Write a message of at most `publish_limit` bytes at once. nats-py's `publish` takes several times as long."""
        self._send(self.outgoing.message(subject, payload, headers, reply))

    def send_question(
        self, subject: bytes, payload: bytes, headers: bytes, reply: str, listener: ControlListener
    ) -> int:
        """Write a message, whose first answer goes to the listener; return the number of the subscription to it.

        NATS ends that subscription with the first answer. The listener must call `forget` then.
        """
        self._sid += 1
        self.controls[b"%d" % self._sid] = listener
        self._patterns.add(self._sid, reply)
        self._send(self.outgoing.question(self._sid, subject, payload, headers, reply.encode()))
        return self._sid

    def forget(self, sid: int) -> None:
        """Remove a subscription that NATS has ended."""
        self._patterns.discard(sid)
        self.controls.pop(b"%d" % sid, None)

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
        """Pass a message of one of the app's own subscriptions to nats-py. Never raises."""
        try:
            await self._process_msg(sid, subject, reply, payload, headers)
        except Exception:
            # An exception would end nats-py's read loop without a log record.
            logger.exception("Cannot deliver a message to the app's own NATS subscription; the message is lost")

    async def next_turn(self) -> None:
        """Let the other tasks of the event loop run, and return when the listener isn't full."""
        await asyncio.sleep(0)
        await self._listener.room()

    @property
    def is_full(self) -> bool:
        """True while nothing is read, because too many messages before aren't written yet."""
        return self._listener.is_full

    def message_too_large(self, size: int) -> None:
        """Note the length of a message above the limit. The connection ends."""
        self.refused_message = size

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
            await self._on_info(decode_info(line[5:]))
        elif not line.startswith(b"+OK"):
            raise MalformedLineError("unknown operation")

    async def _on_info(self, info: dict[str, Any]) -> None:
        await self._process_info(info)
        if info.get("ldm"):
            # Lame duck mode: the server accepts no new connections, and closes the present ones one by one.
            self.needs_replacement.set()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # A later INFO has the limit for what the bridge's user publishes, which may be smaller than the server's.
        self.publish_limit = max_payload_of(info)
        self.accepted_length = max(self.accepted_length, self.publish_limit)
        self.parser.max_payload = min(self.accepted_length, MAX_MESSAGE_BYTES)
        self.jetstream_domain = domain_of(info)
        self._announce(info.pop("connect_urls", None))
        self.requires_login = bool(info.get("auth_required") or info.get("tls_verify"))
        if self.tls_only and info.get("tls_available"):
            # nats-py uses TLS only if the server requires it.
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _announce(self, addresses: Any) -> None:
        """Replace the discovered servers.

        nats-py would keep every address that any INFO has named, and compare each new one with all of them.
        """
        if addresses is not None and not self._ignore_discovered:
            self._announced = usable_addresses(addresses)

    @property
    def discovered_servers(self) -> list[ParseResult]:
        """The other servers that the newest INFO has named."""
        own = {server.netloc.rpartition("@")[2] for server in super().servers}
        return [urlparse(f"nats://{address}") for address in self._announced if address not in own]

    @property
    def servers(self) -> list[ParseResult]:
        """The server of this connection, and the discovered ones."""
        return super().servers + self.discovered_servers

    def _on_pong(self) -> None:
        self._pongs_received += 1
        self._pings_outstanding = 0
        waiter = cast(Any, self._pongs).take()
        self.has_served = self.has_served or not self._pongs
        if isinstance(waiter, Confirmation):
            self._confirm(waiter.sid)
        elif isinstance(waiter, Removal):
            self.sinks.pop(b"%d" % waiter.sid, None)
        elif isinstance(waiter, HealthPing):
            self.unanswered_pings -= 1
        # A cancelled future would raise.
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    def _confirm(self, sid: int) -> None:
        if (control := self.controls.get(b"%d" % sid)) is not None:
            control.confirmed()
        elif sid in self._patterns:
            self._listener.confirmed(self.sinks[b"%d" % sid])

    async def _on_err_line(self, line: bytes) -> None:
        if self._failed:
            return
        decoded = line[:_MAX_ERROR_BYTES].decode("utf-8", "replace")
        unconfirmed = cast(Any, self._pongs).unconfirmed
        effect = classify_error(decoded, self._patterns, unconfirmed)
        self.refused_length = min(self.refused_length, effect.refused_length)
        self._failed = not effect.connection_survives
        if effect.line_too_long:
            self.outgoing.line_refused(effect.refused_length)
        for number, sid in enumerate(effect.refused, 1):
            self._refuse(sid)
            if not number % _REFUSALS_PER_TURN:
                await self.next_turn()
        message = printable(decoded.removeprefix("-ERR").strip())
        if self._failed:
            # nats-py compares in lower case.
            await self._process_err(message.lower())
        elif not (effect.refused or self.on_denied(effect.denied_publish)) and self._error_lines.allows(message):
            logger.warning("The NATS server reported an error: %s", message)

    def _refuse_too_long(self) -> None:
        """Refuse some of the subscriptions whose SUB was not sent, and the others in later turns of the loop."""
        for _ in range(min(len(self._too_long), _REFUSALS_PER_TURN)):
            self._refuse(self._too_long.popleft())
        if self._too_long:
            asyncio.get_running_loop().call_soon(self._refuse_too_long)

    def _refuse(self, sid: int) -> None:
        control, sink = self.controls.get(b"%d" % sid), self.sinks.get(b"%d" % sid)
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
        self.controls.clear()
        self._patterns.clear()
        try:
            await super()._close(status, do_cbs)
        finally:
            self._closed.set()


class _ConnectionParser(Parser):
    """The parser of a connection, which keeps the reason if it can't continue."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._connection = connection

    async def parse(self, data: bytes = b"") -> None:
        """Process each complete operation; keep the rest until more data arrives.

        Raises:
            nats.errors.ProtocolError: The data isn't the NATS protocol.
        """
        if self._connection.is_full:
            await self._connection.next_turn()
        try:
            await super().parse(data)
        except MalformedLineError as error:
            self._connection.abandon_reason = str(error)
            raise nats.errors.ProtocolError from error


def _describe(error: BaseException) -> str:
    if isinstance(error, nats.errors.UnexpectedEOF):
        return "the server closed the connection"
    return str(error) or type(error).__name__
