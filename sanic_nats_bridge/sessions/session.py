"""One browser connection with its subscriptions, on either transport."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..auth.expirations import ExpirationQueue
from ..auth.permissions import Permissions
from ..auth.policy import SubscriptionPolicy
from ..errors import (
    BridgeError,
    CloseCode,
    ForbiddenSubject,
    InternalError,
    SizeLimitExceeded,
    UnknownSession,
    UnsupportedCommand,
)
from ..hub.hub import Hub
from ..metrics.counters import Counters
from ..protocol.encoding import EncodedMessage, WireFormat
from ..protocol.messages import (
    Command,
    Frame,
    Gap,
    NatsState,
    Outcome,
    Reply,
    Status,
    Unsubscribed,
    Welcome,
    close_frame,
    command_id_of,
    decode_command,
    jittered_milliseconds,
    success,
)
from ..protocol.session_ids import digest, new_session_id
from ..settings import Settings
from ..transports.base import CLOSE_SECONDS, Transport
from .keepalive import Keepalive
from .rate_limit import CommandRateLimiter
from .slow_consumer import SlowConsumer
from .subscriptions import Subscriptions

__all__ = ["Session", "SessionContext"]

logger = logging.getLogger("sanic.root.nats_bridge")

_TOO_SLOW = "Too slow: more waits for this client than may"


@dataclass(kw_only=True, slots=True)
class SessionContext:
    """The parts of a worker that its sessions share."""

    settings: Settings
    hub: Hub
    policy: SubscriptionPolicy
    counters: Counters
    expirations: ExpirationQueue
    on_closed: Callable[["Session", int], None]
    """Called once for each session when it has ended, with its WebSocket close code."""
    worker: str
    """The worker's id, with which the ids of its sessions begin."""
    nats: NatsState = "disconnected"


class Session:
    """One browser connection. Signal handlers and `NatsBridge.sessions` hand it to the app, which only reads it."""

    __slots__ = (
        "__weakref__",
        "_context",
        "_keepalive",
        "_lock",
        "_rate_limiter",
        "_secret",
        "_slow_consumer",
        "_subscriptions",
        "_transport",
        "closed",
        "identity",
        "is_writable",
        "key",
        "wire_format",
        "write",
    )  # fmt: skip

    def __init__(self, context: SessionContext, transport: Transport, permissions: Permissions) -> None:
        # Set once. The id goes to the client with the first frame, and is stored nowhere.
        self._secret: str | None = new_session_id(context.worker)
        self.key = digest(self._secret)
        self.identity = permissions.identity
        self.wire_format = transport.wire_format
        self.write = transport.write
        self._context = context
        self._transport = transport
        self._lock = asyncio.Lock()
        self._rate_limiter = CommandRateLimiter(context.settings)
        self._subscriptions = Subscriptions(self, context.hub, context.policy, permissions)
        # Changed in the event loop only.
        self.closed = False
        self.is_writable = True
        self._keepalive: Keepalive | None = None
        self._slow_consumer: SlowConsumer | None = None
        transport.set_listener(self)

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The patterns to which the session is subscribed, as its client names them."""
        return self._subscriptions.patterns

    @property
    def permissions(self) -> Permissions:
        """The permissions of the client."""
        return self._subscriptions.permissions

    @property
    def transport(self) -> Literal["websocket", "sse"]:
        """The client's transport."""
        return "websocket" if self.wire_format in (WireFormat.WEBSOCKET, WireFormat.JSON_LINES) else "sse"

    @property
    def sent_bytes(self) -> int:
        """The number of bytes written to the client's transport."""
        return self._transport.written

    def send(self, frame: Frame) -> None:
        """Write a frame to the client, after everything that was written before."""
        if not self.closed:
            self._transport.send(frame)

    def begin(self) -> None:
        """Write the first frame, and start the keepalive."""
        settings = self._context.settings
        heartbeat = int(settings.heartbeat) if settings.heartbeat.is_integer() else settings.heartbeat
        secret, self._secret = self._secret, None
        assert secret is not None
        welcome = Welcome(session=secret, heartbeat=heartbeat, nats=self._context.nats)
        self._transport.send(welcome, jittered_milliseconds(settings.retry))
        self._keepalive = Keepalive(self._transport, settings)

    # Commands

    async def execute(self, received: str | bytes | Command, *, rate_limited: bool = True) -> Outcome:
        """Execute one command after those that arrived before it. Never raises a `BridgeError`.

        A rejected command changes nothing; it is counted, and may end the session. The caller must write the
        reply before the event loop turns, so that it precedes the first message.

        Args:
            received: A text frame, the payload of a binary frame, or a command that is decoded already.
            rate_limited: Whether the command counts against ``command_rate``.
        """
        command = received if isinstance(received, Command) else None
        data = b"" if isinstance(received, Command) else received.encode() if isinstance(received, str) else received
        try:
            self._check_size(data)
            if rate_limited:
                self._count_command()
            if command is None:
                command = self._decode(received, data)
            return Outcome(await self._carry_out(command))
        except BridgeError as error:
            rejection = error
        except Exception:
            logger.exception("Fault in a command")
            rejection = InternalError("Internal error")
        self._context.counters.refused[rejection.code] += 1
        self._rate_limiter.count_rejection(rejection)
        self._end_excess()
        if command is None:
            return Outcome.rejected(rejection, id=command_id_of(data))
        return Outcome.rejected(rejection, command.action, command.id)

    def _check_size(self, data: bytes) -> None:
        max_bytes = self._context.settings.max_command_bytes
        if len(data) > max_bytes:
            error = SizeLimitExceeded(f"A command is at most {max_bytes} bytes")
            self.fail(error)
            raise error

    def _count_command(self) -> None:
        try:
            self._rate_limiter.count()
        finally:
            self._end_excess()

    def _decode(self, received: object, data: bytes) -> Command:
        if not isinstance(received, str):
            raise UnsupportedCommand("Binary frames are not supported")
        return decode_command(data)

    def control_frame_received(self) -> None:
        """Count a ping, or another frame that is no command, as one: it costs no less."""
        self._rate_limiter.count_ping()
        self._end_excess()

    def _end_excess(self) -> None:
        if self._rate_limiter.excess is not None:
            self.close(CloseCode.TOO_MANY_COMMANDS, self._rate_limiter.excess)

    async def _carry_out(self, command: Command) -> Reply:
        async with self._lock:
            await self.wait_until_writable()
            self._context.expirations.expire_due()
            if self.closed:
                raise UnknownSession("No such session")
            if command.action == "subscribe":
                return await self._subscribe(command)
            if command.action == "unsubscribe":
                return self._unsubscribe(command)
            return Reply(id=command.id, action="ping", success=True, message="pong")

    async def _subscribe(self, command: Command) -> Reply:
        seconds = self._context.settings.confirm_timeout
        patterns, active = await self._subscriptions.subscribe(command.patterns, seconds)
        return success(command, patterns, active)

    def _unsubscribe(self, command: Command) -> Reply:
        patterns = self._subscriptions.unsubscribe(command.patterns)
        for pattern in patterns:
            self.subscription_active(pattern)
        return success(command, patterns)

    # A client that does not keep up

    def pause_writing(self) -> None:
        """More waits for the client than may: its messages are left out from here on."""
        if not self.closed:
            self.is_writable = False
            self._slow_consumer = SlowConsumer(
                self.wire_format, self._context.settings.kept_bytes, self._context.counters
            )

    def skip(self, messages: Sequence[EncodedMessage]) -> None:
        """Deal with messages that come while the client does not keep up."""
        if self._context.settings.overflow == "close":
            self.close(CloseCode.TRY_AGAIN_LATER, _TOO_SLOW, self._context.settings.write_timeout)
        elif self._slow_consumer is not None:
            self._slow_consumer.add(messages)

    def resume_writing(self) -> None:
        """The client has caught up: tell it what it has missed, and go on."""
        self._context.expirations.expire_due()
        skipped, self._slow_consumer = self._slow_consumer, None
        if skipped is None or self.closed:
            return
        self.is_writable = True
        skipped.over.set()
        if told := skipped.told():
            self.write(told)

    async def wait_until_writable(self) -> None:
        """Wait until the client keeps up, or is gone: what it asks for would wait behind all the rest."""
        while self._slow_consumer is not None:
            await self._slow_consumer.over.wait()

    # What the hub, the connection to NATS and the app bring

    def subscription_active(self, pattern: str) -> None:
        """There is an end to whether NATS has a subscription: it has, or the client follows it no longer."""
        if self._subscriptions.settle(pattern) and self._context.nats == "connected":
            self.send(Status(nats="connected"))

    def ended(self, pattern: str, error: BridgeError) -> None:
        """A subscription was ended, but not by the client."""
        if self.closed:
            return
        self._subscriptions.drop(pattern)
        if self._slow_consumer is not None and (gap := self._slow_consumer.take(pattern)):
            self.send(gap)
        self.send(Unsubscribed(subjects=[pattern], code=error.code, message=error.message))
        self.subscription_active(pattern)

    def missed(self, pattern: str) -> None:
        """Tell the client that it may have missed messages here, by a fault of the bridge."""
        self._context.counters.gaps["internal"] += 1
        self.send(Gap(subjects=[pattern], lost=None, reason="internal"))

    def mark_gaps(self) -> None:
        """Remember which subscriptions miss messages from here on."""
        self._subscriptions.mark_gaps()

    def send_gaps(self) -> None:
        """Tell the client which subscriptions have missed messages up to here."""
        holes = self._subscriptions.take_gaps()
        if holes:
            self._context.counters.gaps["nats_reconnect"] += len(holes)
            self.send(Gap(subjects=holes, lost=None, reason="nats_reconnect"))

    def send_connected(self, status: bytes) -> None:
        """Tell the client that every subscription is live, or else let `subscription_active` do so, once it is."""
        if self._subscriptions.confirm_active():
            self.write(status)

    def update_permissions(self, permissions: Permissions) -> None:
        """Go by other permissions from here on; subscriptions that do not fit end."""
        for pattern in self._subscriptions.update_permissions(permissions):
            self.ended(pattern, ForbiddenSubject(f"No longer allowed: '{pattern}'", [pattern]))
        if self._slow_consumer is not None:
            self._slow_consumer.drop(self._subscriptions.excludes)

    # The end

    def fail(self, error: BridgeError) -> None:
        """End the session for an error that no reply can mend."""
        self.close(error.close_code or CloseCode.INTERNAL, error.message)

    def expire(self) -> None:
        """End the session, for its permissions have expired; what the server, or the kernel, has may still leave."""
        self.close(CloseCode.UNAUTHORIZED, "The permissions have expired", self._context.settings.write_timeout)

    def close(self, code: CloseCode, reason: str, seconds: float | None = None) -> None:
        """End the session: the client hears why, and nothing more; it has so many seconds to take that."""
        if not self.closed:
            self._leave(code, cut=code.drops_pending)
            settings = self._context.settings
            close = close_frame(code, reason, retry=settings.retry, spread=settings.reconnect_spread)
            self._transport.close(close, seconds or CLOSE_SECONDS)

    def connection_lost(self, code: int) -> None:
        """The client has ended the connection, with this WebSocket close code."""
        if not self.closed:
            self._leave(code)

    def _leave(self, code: int, *, cut: bool = False) -> None:
        self.closed = True
        self._transport.set_listener(None)
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._slow_consumer is not None:
            self._slow_consumer.over.set()
            self._slow_consumer = None
        self._subscriptions.close(cut=cut)
        self._context.on_closed(self, code)
