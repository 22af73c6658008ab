"""One browser connection with its subscriptions, on either transport."""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from ..auth.permissions import Grant, Permissions
from ..errors import (
    BridgeError,
    CloseCode,
    OverlapLimitExceeded,
)
from ..hub.interest import View
from ..hub.skipped import SkippedMessages
from ..log_limits import limited_logger
from ..protocol.encoding import WireFormat, encode_frame
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
    jittered_milliseconds,
    success_reply,
)
from ..protocol.session_ids import digest, new_session_id
from ..transports.base import CLOSE_SECONDS, Transport
from .commands import SessionCommands
from .context import SessionContext, encoded_status
from .following import Following
from .history import SessionHistory
from .keepalive import Keepalive
from .slow_consumer import SlowConsumer
from .subscriptions import Subscriptions, no_longer_allowed

__all__ = ["Session"]

logger = limited_logger()

_RECONNECT_SPREAD_OF_OLD = 0.1
"""Seconds over which the client of an old event stream reconnects. The ages themselves are spread already."""
_TOO_OLD = "The event stream has reached its maximum age"
_TOO_SLOW = "Slow consumer: the client does not read its messages fast enough"


class Session:
    """One browser connection. The app gets it from signals and `NatsBridge.sessions`, and must only read it."""

    __slots__ = (
        "__weakref__",
        "_commands",
        "_context",
        "_expiring",
        "_following",
        "_history",
        "_keepalive",
        "_last_status",
        "_secret",
        "_slow_consumer",
        "_subscriptions",
        "_transport",
        "address",
        "closed",
        "identity",
        "is_writable",
        "key",
        "wire_format",
        "write",
    )

    def __init__(
        self, context: SessionContext, transport: Transport, permissions: Permissions, address: str = ""
    ) -> None:
        # Set once. The id is sent to the client in the first frame, and not stored afterwards.
        self._secret: str | None = new_session_id(context.worker)
        self.key = digest(self._secret)
        """The digest of the id. It names the session in `NatsBridge.revoke`, but authorizes no command."""
        self.identity = permissions.identity
        self.address = address
        self.wire_format = transport.wire_format
        self.write = transport.write
        self._context = context
        self._transport = transport
        self._commands = SessionCommands(self, context)
        client = f"address {address}" if self.identity is None else f"identity {self.identity}"
        self._subscriptions = Subscriptions(self, context.hub, context.policy, permissions, context.shares, client)
        self._following = Following(self, context, self._subscriptions, self._commands)
        # Changed in the event loop only.
        self.closed = False
        self._expiring = False
        self.is_writable = True
        self._keepalive: Keepalive | None = None
        self._history: SessionHistory | None = None
        self._last_status: NatsState = context.nats
        """The state of NATS in the last status that was sent."""
        self._slow_consumer: SlowConsumer | None = None
        transport.set_listener(self)

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The patterns to which the session is subscribed, as its client names them."""
        held = () if self._history is None else self._history.patterns
        return (*self._subscriptions.patterns, *held)

    @property
    def views(self) -> Collection[View]:
        """The views of the hub in which the session sees messages."""
        if self._history is not None:
            return [*self._subscriptions.views, *self._history.views]
        return self._subscriptions.views

    @property
    def permissions(self) -> Permissions:
        """The permissions of the client."""
        return self._subscriptions.permissions

    @property
    def transport(self) -> Literal["websocket", "sse"]:
        """The client's transport."""
        return "websocket" if self.wire_format in (WireFormat.WEBSOCKET, WireFormat.JSON_LINES) else "sse"

    @property
    def client(self) -> str:
        """The client of the session: its identity, or else its address."""
        return self._subscriptions.client

    @property
    def pending(self) -> int:
        """The number of bytes that wait for the client."""
        return self._transport.pending

    @property
    def sent_bytes(self) -> int:
        """The number of bytes written to the client's transport."""
        return self._transport.written

    @property
    def nats(self) -> NatsState:
        """The state of the connections to NATS that the subscriptions use; without any, that of the first."""
        if self._history is None or not self._history.patterns:
            return self._context.nats
        return self._context.nats_of_streams(also_core=bool(self._subscriptions.views))

    def send(self, frame: Frame) -> None:
        """Write a frame to the client, after all messages received so far; do nothing if the session has ended."""
        self.send_all((frame,))

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Write frames as `send` does, at once."""
        self._catch_up()
        if not self.closed:
            self.write(b"".join([encode_frame(frame, self.wire_format) for frame in frames]))

    def flush(self) -> None:
        """Write all messages received so far. It may end the session."""
        self._context.hub.flush_to(self)

    def _catch_up(self) -> None:
        """Write the messages that are left of the last flush. It may end the session."""
        if self._context.hub.is_behind and not self.closed:
            self._context.hub.flush_to(self)

    def start(self) -> None:
        """Write the ``welcome`` frame and start the keepalive."""
        settings = self._context.settings
        heartbeat = int(settings.heartbeat) if settings.heartbeat.is_integer() else settings.heartbeat
        secret, self._secret = self._secret, None
        assert secret is not None
        welcome = Welcome(session=secret, features=self._context.features, heartbeat=heartbeat, nats=self._context.nats)
        self._transport.send(welcome, jittered_milliseconds(settings.retry))
        self._keepalive = Keepalive(self._transport, settings)

    async def begin(self, query: Command | None = None) -> None:
        """Follow what needs no command, and execute that in the query of an event stream, before any other command."""
        await self._following.begin(query)

    # Commands

    async def receive(self, frame: str | bytes) -> Outcome | None:
        """Execute the command in a frame, as `execute` does.

        Args:
            frame: A text frame, or the payload of a binary frame.

        Returns:
            The outcome, or ``None`` if the reply to a publish or a request follows later.
        """
        return await self._commands.receive(frame)

    def respond(self, reply: Reply) -> None:
        """Write the reply to a command, in this turn of the event loop and after all earlier ones."""
        self._commands.respond(reply)

    async def execute(self, command: Command) -> Outcome:
        """Execute one command, after those that arrived before it. Never raises a `BridgeError`.

        A rejected command changes nothing. It is counted, and may end the session. The caller must write the reply
        in the same turn of the event loop, so that it precedes the first message.
        """
        return await self._commands.execute(command)

    def reject(self, error: BridgeError) -> None:
        """Count a command that was rejected before it was received in full, and end the session."""
        self._commands.reject(error)

    def control_frame_received(self) -> None:
        """Count a ping, or another frame without a command, as a command, because it costs as much."""
        self._commands.count_control_frame()

    async def execute_next(self, command: Command) -> Reply:
        """Execute a command that is within the limits, while no other is executed."""
        if command.action == "subscribe":
            reply = await self.subscribe(command, self._commands.rate_limiter.count_patterns)
            self._subscriptions.ask(command.patterns)
            return reply
        if command.action == "unsubscribe":
            return self._unsubscribe(command)
        return Reply(id=command.id, action="ping", success=True, message="pong")

    async def subscribe(self, command: Command, count: Callable[[int], None], most: float = math.inf) -> Reply:
        """Subscribe as `FollowingOwner.subscribe` does."""
        if self._context.streams is not None and (self._history is not None or command.start is not None):
            return await self.history.execute_subscribe(command, self._subscriptions, count)
        seconds = min(most, self._context.settings.confirm_timeout)
        patterns, active = await self._subscriptions.subscribe(command.patterns, seconds, count)
        return success_reply(command, patterns, active)

    @property
    def history(self) -> SessionHistory:
        """The resumable subscriptions. The worker must have streams."""
        if self._history is None:
            assert self._context.streams is not None
            self._history = SessionHistory(self, self._context.streams, self._context.settings, self._context.shares)
            if self._keepalive is not None:
                self._keepalive.announce_position(self._position)
        return self._history

    def _position(self) -> str:
        """Return the position up to which the client has everything, or an empty string."""
        # The position includes the messages that were gathered, but aren't written yet.
        self.flush()
        return "" if self.closed or self._history is None or not self.is_writable else self._history.position()

    def allows_history(self, grant: Grant) -> bool:
        """Return whether the client may read the past of a pattern."""
        return self.permissions.allows_history(grant)

    def _unsubscribe(self, command: Command) -> Reply:
        held = () if self._history is None else self._history.patterns
        patterns = self._subscriptions.unsubscribe(command.patterns, held)
        if self._history is not None:
            self._history.remove_all(patterns)
            self._history.note_change()
        for pattern in patterns:
            self.subscription_active(pattern)
        return success_reply(command, patterns)

    # Slow consumers

    def pause_writing(self) -> None:
        """Skip messages from now on, because the client's buffer has exceeded its limit."""
        if not self.closed:
            self.is_writable = False
            self._slow_consumer = SlowConsumer(
                self.wire_format, self._context.settings.kept_bytes, self._context.counters
            )

    def skip(self, skipped: SkippedMessages) -> None:
        """Skip messages that arrive while the client is too slow, or close the session if ``overflow`` is "close"."""
        if self._history is not None and skipped.stored:
            self._history.skip(skipped.stored)
            skipped = skipped.others
            if not skipped.messages:
                return
        if self._context.settings.overflow == "close":
            self.close(CloseCode.TRY_AGAIN_LATER, _TOO_SLOW, self._context.settings.write_timeout)
        elif self._slow_consumer is not None:
            self._slow_consumer.add(skipped)

    def resume_writing(self) -> None:
        """Send the gaps and the kept messages to a client that has caught up, and stop skipping."""
        self._context.expirations.expire_due()
        if self._history is not None and self._slow_consumer is not None and not self.closed:
            # The messages that were gathered, but not skipped yet. Otherwise they would precede the skipped ones.
            self._context.hub.flush_to(self)
        if self._slow_consumer is None or self.closed:
            return
        slow_consumer, self._slow_consumer = self._slow_consumer, None
        self.is_writable = True
        slow_consumer.ended.set()
        if backlog := slow_consumer.encode_backlog():
            self.write(backlog)
        if self._history is not None:
            self._history.catch_up()

    async def wait_until_writable(self) -> None:
        """Wait until the client has caught up or the session has ended.

        A slow client would get the reply to a command only after all that is buffered for it.
        """
        while self._slow_consumer is not None:
            await self._slow_consumer.ended.wait()

    # Called by the hub, the registry and the app

    def subscription_active(self, pattern: str) -> None:
        """Mark a subscription as confirmed or ended, and send the status "connected" once none is unconfirmed."""
        if self._subscriptions.confirm(pattern) and self.nats == "connected":
            self._last_status = "connected"
            self.send(Status(nats="connected"))

    def subscription_ended(self, pattern: str, error: BridgeError) -> None:
        """Remove a subscription that the client hasn't ended itself, and report it to the client."""
        self.report_ended([pattern], error)

    def report_ended(self, patterns: list[str], error: BridgeError) -> None:
        """Remove subscriptions whose delivery has ended, and report that to the client."""
        self._catch_up()
        if self.closed:
            return
        for pattern in patterns:
            self._subscriptions.remove(pattern)
            if self._slow_consumer is not None and (gap := self._slow_consumer.remove(pattern)):
                self.send(gap)
        self.send(Unsubscribed(subjects=patterns, code=error.code, message=error.message))
        for pattern in patterns:
            self.subscription_active(pattern)

    def expire_due(self) -> None:
        """End the session if its permissions have expired, and all others whose permissions have."""
        self._context.expirations.expire_due()

    def charge_replay(self, messages: int) -> None:
        """Count messages of a replay as commands, because a client causes them."""
        self._commands.rate_limiter.count_replayed(messages)

    @property
    def command_lock(self) -> asyncio.Lock:
        """The lock that is held while a command is executed."""
        return self._commands.lock

    async def follow_live(self, patterns: Sequence[str], others: int) -> None:
        """Subscribe to patterns without history, because no stream turned out to hold them."""
        await self._subscriptions.subscribe(patterns, self._context.settings.confirm_timeout, others=others)

    def patterns_ended(self, patterns: list[str], error: BridgeError) -> None:
        """Report subscriptions to the client that its history has ended."""
        self.report_ended(patterns, error)
        self._following.history_ended(patterns, error)

    def limit_overlap(self, subject: str) -> None:
        """End the newest subscriptions that match a subject, beyond ``max_overlap``."""
        if not self.closed:
            stored = [] if self._history is None else self._history.matching(subject)
            self.end_overlap([*self._subscriptions.matching(subject), *stored][self._context.settings.max_overlap :])

    def end_overlap(self, patterns: list[str]) -> None:
        """End subscriptions to patterns of which too many match one message."""
        if not patterns:
            return
        self._subscriptions.detach(patterns)
        if self._history is not None:
            self._history.remove_all(patterns, cut=True)
        self._context.counters.refused[OverlapLimitExceeded.code] += len(patterns)
        limit = self._context.settings.max_overlap
        message = f"More than {limit} subjects of this session match the same message; the newest have ended"
        self.report_ended(patterns, OverlapLimitExceeded(message, patterns))

    def messages_lost(self, pattern: str) -> None:
        """Send a gap for messages that an internal error may have lost."""
        self._context.counters.gaps["internal"] += 1
        self.send(Gap(subjects=[pattern], lost=None, reason="internal"))

    def send_gaps(self) -> None:
        """Send a gap for the subscriptions that have lost messages, because NATS is connected again."""
        patterns = self._subscriptions.take_gaps()
        if patterns and not self.closed:
            self._context.counters.gaps["nats_reconnect"] += len(patterns)
            self.send(Gap(subjects=patterns, lost=None, reason="nats_reconnect"))

    def nats_changed(self, *, core: bool = False) -> None:
        """Write the status of NATS if it isn't the last one that was written.

        The status "connected" waits until every subscription is active; `subscription_active` sends it then.

        Args:
            core: Whether the first connection has changed, and not that for streams, or the subscriptions.
        """
        nats = self.nats
        if self._history is None and not core:
            return
        if nats == "connected" and not self._subscriptions.confirm_active():
            return
        if self._history is None or nats != self._last_status:
            self._last_status = nats
            self._catch_up()
            if not self.closed:
                self.write(encoded_status(nats, self.wire_format))

    def update_permissions(self, permissions: Permissions) -> None:
        """Replace the permissions, and end the subscriptions that they don't allow."""
        ended = self._subscriptions.update_permissions(permissions)
        if self._history is not None:
            ended += self._history.update_grants(self._subscriptions.grant_if_allowed)
        for pattern in ended:
            self.subscription_ended(pattern, no_longer_allowed([pattern]))
        self._following.update(ended)
        if self._slow_consumer is not None:
            self._slow_consumer.drop_excluded(self._subscriptions.excludes)

    # The end of the session

    def close_with_error(self, error: BridgeError) -> None:
        """End the session because of an error."""
        self.close(error.close_code or CloseCode.INTERNAL, error.message)

    def withhold(self) -> None:
        """Write no message, reply or notice any more, and execute no commands, because the permissions have expired.

        `expire` must follow. It takes many times as long, so most of many sessions wait for it.
        """
        if self.closed:
            return
        self.closed = self._expiring = True
        # So that the hub calls `skip` instead of `write`.
        self.is_writable = False
        self._subscriptions.stop()

    def expire(self) -> None:
        """End a session that `withhold` has stopped.

        Messages that were written before may still be sent within ``write_timeout``.
        """
        if self._expiring:
            self._expiring = False
            self._close(CloseCode.UNAUTHORIZED, "The permissions have expired", self._context.settings.write_timeout)

    def end_old_stream(self) -> None:
        """End the session because its event stream has reached ``max_stream_age``.

        All that was received for the client is written first, and it has ``write_timeout`` to accept that.
        """
        self._context.expirations.expire_due()
        # It may end the session.
        self._context.hub.flush_to(self)
        if self.closed:
            return
        if self._slow_consumer is not None and (backlog := self._slow_consumer.encode_backlog()):
            self.write(backlog)
        self.close(
            CloseCode.GOING_AWAY, _TOO_OLD, self._context.settings.write_timeout, spread=_RECONNECT_SPREAD_OF_OLD
        )

    def close(self, code: CloseCode, reason: str, seconds: float | None = None, *, spread: float | None = None) -> None:
        """End the session with a ``close`` frame, which is the last one.

        Args:
            code: The close code.
            reason: The reason, for people.
            seconds: The time that the client has to accept all that was written; 5 seconds by default.
            spread: The seconds over which clients that get 1001 reconnect; those for a worker that stops by default.
        """
        self._commands.write_replies()
        if not self.closed:
            self._close(code, reason, seconds, spread)

    def _close(self, code: CloseCode, reason: str, seconds: float | None, spread: float | None = None) -> None:
        self._end(code, cut=code.drops_pending)
        spread = self._context.reconnect_spread if spread is None else spread
        close = close_frame(code, reason, retry=self._context.settings.retry, spread=spread)
        self._transport.close(close, seconds or CLOSE_SECONDS)

    def connection_lost(self, code: int) -> None:
        """End the session because the connection was closed, with this WebSocket close code."""
        if self._expiring:
            self._expiring = False
            self._end(CloseCode.UNAUTHORIZED, cut=True)
        elif not self.closed:
            self._end(code)

    def _end(self, code: int, *, cut: bool = False) -> None:
        self.closed = True
        self._transport.set_listener(None)
        if self._keepalive is not None:
            self._keepalive.stop()
        if self._slow_consumer is not None:
            self._slow_consumer.ended.set()
            self._slow_consumer = None
        self._commands.close()
        self._following.close()
        self._subscriptions.close(cut=cut)
        if self._history is not None:
            self._history.close(cut=cut)
        self._context.on_closed(self, code)
