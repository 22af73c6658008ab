"""One connection to a NATS server. The only file that touches the private parts of nats-py's client.

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
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, cast

import nats.errors
from nats.aio.client import Client

from .parser import MalformedLineError, Parser
from .server_errors import classify_error, sub_length
from .transport import TcpSocket, WebSocket, transport_for, within

__all__ = ["Connection", "MessageListener", "NatsClient"]

NatsClient: TypeAlias = Client

# Below "sanic.root", so that its lines appear in Sanic's log and follow its settings.
logger = logging.getLogger("sanic.root.nats_bridge")


class MessageListener(Protocol):
    """Who takes what comes for subscriptions; ``sink`` is what was handed to `Connection.follow`."""

    @property
    def on_message(self) -> Callable[[Any, bytes, bytes, bytes], None]:
        """Called with each message: sink, subject, headers, payload."""

    def delivery_failed(self, sink: Any) -> None:
        """`on_message` has raised: the message is lost."""

    def confirmed(self, sink: Any) -> None:
        """The server has the subscription."""

    def refused(self, sink: Any) -> None:
        """The server does not have the subscription, or has it no longer."""


class _Confirmation:
    """Waits in nats-py's list of PINGs for the PONG that answers the SUB before it."""

    def __init__(self, sid: int) -> None:
        self.sid = sid


class _HealthPing:
    """Waits there for the PONG to a PING that only asks whether the server lives."""


class Connection(Client):
    """One connection to one server, from its CONNECT until it ends.

    Args:
        listener: Who takes what comes.
        address: Of the server, for those who want another one.
        tls_only: Whether to say nothing to a server without TLS.
    """

    def __init__(self, listener: MessageListener, address: str = "", *, tls_only: bool = False) -> None:
        super().__init__()
        self.address = address
        self.tls_only = tls_only
        self.ended = asyncio.Event()
        self.must_be_replaced = asyncio.Event()
        self.unanswered_pings = 0
        self.cause: Exception | None = None
        self.too_long = math.inf
        """The least `sub_length` that the server is known not to take."""
        self._abandon_reason: str | None = None
        self._closed = asyncio.Event()
        self._listener = listener
        # Bound to Hub.on_message, which is bound to Broadcaster.on_message: no call in between per message.
        self.on_message = listener.on_message
        self.sinks: dict[bytes, Any] = {}
        self._patterns: dict[int, str] = {}
        self._slow: set[int] = set()
        self._ps: Any = Parser(self)

    async def open(self, **options: Any) -> None:
        """Connect.

        Raises:
            Exception: Whatever nats-py or the network has to say; `cause` is nearer to the reason.
        """
        self._transport = transport_for(options["servers"], tls_only=self.tls_only)
        await self.connect(error_cb=self._note_error, **options)
        if not self.is_connected:
            # nats-py goes on after whatever is neither PONG nor -ERR, but never sends what is published.
            raise nats.errors.Error("the server did not answer CONNECT")
        # Whatever ends a connection ends its read loop, an exception in it included.
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self._end())

    @property
    def end_reason(self) -> str:
        """Why the connection has ended, for the log."""
        if self._abandon_reason is not None:
            return self._abandon_reason
        if self.must_be_replaced.is_set() and not self.ended.is_set():
            return "the server is about to stop"
        reason = self.last_error or self.cause
        return _words(reason) if reason else "the connection has ended"

    @property
    def reads(self) -> int:
        """How often anything was read from the server."""
        reads: int = self._ps.reads
        return reads

    def ping(self) -> None:
        """Send a PING that counts as unanswered until its PONG."""
        self.unanswered_pings += 1
        self._pongs.append(cast(Any, _HealthPing()))
        self._send(b"PING\r\n")

    def abandon(self, reason: str) -> None:
        """End the connection without a word to the server, which would not hear it."""
        self._abandon_reason = reason
        self.abort()
        self._end()

    def abort(self) -> None:
        """Let go of the socket, however much the server has not taken yet."""
        if isinstance(self._transport, TcpSocket | WebSocket):
            self._transport.abort()

    async def drain_and_close(self, seconds: float) -> None:
        """Drain, then release, in ``seconds`` each."""
        await within(seconds, self.drain())
        await self.close_within(seconds)

    async def close_within(self, seconds: float) -> None:
        """Close, unless somebody has begun to; what the server has not taken in ``seconds`` is lost."""
        await within(seconds, self._close_and_wait())
        self.abort()

    async def _close_and_wait(self) -> None:
        await self.close()
        await self._closed.wait()

    def _end(self) -> None:
        self.ended.set()
        self.must_be_replaced.set()

    def add_subscription(self, pattern: str, sink: Any) -> int:
        """Send SUB, and a PING whose PONG says that the server has taken it; none that is known to be too long."""
        # Written at once and together: nats-py's own PING overtakes a SUB that waits for its flusher.
        self._sid += 1
        self._patterns[self._sid] = pattern
        self.sinks[b"%d" % self._sid] = sink
        if sub_length(pattern, self._sid) >= self.too_long:
            asyncio.get_running_loop().call_soon(self._refuse, self._sid)
            return self._sid
        self._pongs.append(cast(Any, _Confirmation(self._sid)))
        self._send(b"SUB %b %d\r\nPING\r\n" % (pattern.encode(), self._sid))
        return self._sid

    def remove_subscription(self, sid: int) -> None:
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

    def delivery_failed(self, sink: Any, error: Exception) -> None:
        """Log that the listener has failed on a message, and have it tell those who miss it."""
        logger.error("A message from NATS could not be delivered", exc_info=error)
        try:
            self._listener.delivery_failed(sink)
        except Exception:
            # It would end nats-py's read loop, in silence.
            logger.exception("Nor could it be told that one was lost")

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
            await self._info(json.loads(line[5:]))
        elif not line.startswith(b"+OK"):
            raise MalformedLineError("an unknown operation")

    async def _info(self, info: Any) -> None:
        await self._process_info(info)
        if info.get("ldm"):
            # Lame duck mode: the server ends its connections one after another, and takes no new one.
            self.must_be_replaced.set()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self.tls_only and info.get("tls_available"):
            # nats-py would speak TLS only with a server that insists on it.
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _pong(self) -> None:
        self._pongs_received += 1
        self._pings_outstanding = 0
        waiter = self._pongs.pop(0) if self._pongs else None
        if isinstance(waiter, _Confirmation):
            sink = self.sinks.get(b"%d" % waiter.sid)
            if sink is not None:
                self._listener.confirmed(sink)
        elif isinstance(waiter, _HealthPing):
            self.unanswered_pings -= 1
        # A future that its waiter has given up would raise.
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    async def _error(self, line: bytes) -> None:
        written = line.decode("utf-8", "replace")
        unconfirmed = next((waiter.sid for waiter in self._pongs if isinstance(waiter, _Confirmation)), None)
        verdict = classify_error(written, self._patterns, unconfirmed)
        self.too_long = min(self.too_long, verdict.too_long)
        for sid in verdict.refused:
            self._refuse(sid)
        text = written.lower().removeprefix("-err").strip()
        if not verdict.connection_survives:
            await self._process_err(text)
        elif not verdict.refused:
            logger.warning("NATS: %s", text)

    def _refuse(self, sid: int) -> None:
        sink = self.sinks.get(b"%d" % sid)
        if sink is not None:
            self.remove_subscription(sid)
            self._listener.refused(sink)

    async def _note_error(self, error: Exception) -> None:
        self.cause = error
        if isinstance(error, nats.errors.SlowConsumerError):
            # nats-py says so of every message that it drops.
            if error.sid not in self._slow:
                self._slow.add(error.sid)
                logger.warning("The app's own subscription to %a is too slow: NATS messages are lost", error.subject)
        elif self.is_connected:
            logger.warning("%s", _words(error))

    async def drain(self) -> None:
        """Drain as nats-py does; whatever comes of it, the connection is over then."""
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
        # What is still in the buffer of the read loop comes too late.
        self.sinks.clear()
        self._patterns.clear()
        try:
            await super()._close(status, do_cbs)
        finally:
            self._closed.set()


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
