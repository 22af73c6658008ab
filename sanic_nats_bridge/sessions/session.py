"""One browser connection with its subscriptions, on either transport."""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from ..auth.permissions import Permissions
from ..auth.policy import Admission
from ..errors import BridgeError, CloseCode, SessionUnknown, SubjectForbidden
from ..hub.hub import Hub
from ..protocol.encoding import Delivery, Form
from ..protocol.messages import (
    Command,
    Frame,
    Gap,
    NatsState,
    Reply,
    Status,
    Unsubscribed,
    Welcome,
    farewell,
    jittered,
    success,
)
from ..protocol.session_ids import digest, new_session_id
from ..settings import Settings
from ..transports.base import CLOSE_SECONDS, Outlet
from .keepalive import Pulse
from .rate_limit import CommandMeter
from .slow_consumer import LeftOut
from .subscriptions import Subscriptions

__all__ = ["Session", "SessionHome"]

_TOO_SLOW: Final = "Too slow: more waits for this client than may"


class SessionHome(Protocol):
    """What a session needs of the worker that it lives in."""

    @property
    def worker(self) -> str:
        """The worker's id."""

    @property
    def settings(self) -> Settings:
        """The bridge's options."""

    @property
    def hub(self) -> Hub:
        """Where the session's subscriptions are."""

    @property
    def admission(self) -> Admission:
        """Who judges the session's commands."""

    @property
    def nats(self) -> NatsState:
        """How the connection to NATS is."""

    def expire(self) -> None:
        """End the sessions whose permissions have expired."""

    def left(self, session: "Session", code: int) -> None:
        """The session has ended, with this WebSocket close code."""


class Session:
    """One browser connection. Handlers of the bridge's signals get it, and `NatsBridge.sessions`; they only read it."""

    __slots__ = (
        "__weakref__", "_home", "_left_out", "_meter", "_one_at_a_time", "_outlet", "_pulse",
        "_secret", "_subscriptions", "_tally", "closed", "form", "identity", "keeps_up", "key", "write",
    )  # fmt: skip

    def __init__(self, home: SessionHome, outlet: Outlet, permissions: Permissions) -> None:
        # Set once. The id itself goes to the client with the first frame, and is kept nowhere.
        self._secret: str | None = new_session_id(home.worker)
        self.key: Final = digest(self._secret)
        self.identity: Final = permissions.identity
        self.form: Final = outlet.form
        self.write: Final = outlet.write
        self._home = home
        self._outlet = outlet
        self._tally = home.hub.tally
        outlet.watcher = self
        self._one_at_a_time = asyncio.Lock()
        self._meter = CommandMeter(home.settings)
        self._subscriptions = Subscriptions(self, home.hub, home.admission, permissions)
        # Changed in the event loop alone.
        self.closed = False
        self.keeps_up = True
        self._pulse: Pulse | None = None
        self._left_out: LeftOut | None = None

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The patterns that the session follows, as its client names them."""
        return self._subscriptions.patterns

    @property
    def permissions(self) -> Permissions:
        """What the client may follow."""
        return self._subscriptions.permissions

    @property
    def transport(self) -> Literal["websocket", "events"]:
        """How the client is connected."""
        return "websocket" if self.form in (Form.WEBSOCKET, Form.JSON_LINES) else "events"

    @property
    def sent_bytes(self) -> int:
        """Bytes written to the client's connection."""
        return self._outlet.written

    def send(self, frame: Frame) -> None:
        """Write a frame to the client, behind everything that was written before."""
        if not self.closed:
            self._outlet.send(frame)

    def begin(self) -> None:
        """Write the first frame, and keep the connection alive from here on."""
        settings = self._home.settings
        heartbeat = int(settings.heartbeat) if settings.heartbeat.is_integer() else settings.heartbeat
        secret, self._secret = self._secret, None
        assert secret is not None
        self._outlet.send(Welcome(session=secret, heartbeat=heartbeat, nats=self._home.nats), jittered(settings.retry))
        self._pulse = Pulse(self._outlet, settings)

    # Commands

    def count_command(self) -> None:
        """Count what has come as a command, whatever it is.

        Raises:
            RateLimit: The client sends more than it may; the session has ended if it went on regardless.
        """
        try:
            self._meter.count()
        finally:
            self._end_excess()

    def count_refusal(self, error: BridgeError) -> None:
        """Count commands that no client should send; end the session where there are too many."""
        self._meter.count_refusal(error)
        self._end_excess()

    def pinged(self) -> None:
        """Count a ping, or another frame that is no command, as one: it costs no less."""
        self._meter.count_ping()
        self._end_excess()

    def _end_excess(self) -> None:
        if self._meter.excess is not None:
            self.close(CloseCode.TOO_MANY_COMMANDS, self._meter.excess)

    async def handle(self, command: Command) -> Reply:
        """Carry one command out, after those that came before it.

        The reply must be written before the event loop turns: then it stands before the first message.

        Raises:
            BridgeError: It was refused, and nothing has changed.
        """
        async with self._one_at_a_time:
            await self.caught_up()
            self._home.expire()
            if self.closed:
                raise SessionUnknown("No such session")
            if command.action == "subscribe":
                return await self._subscribe(command)
            if command.action == "unsubscribe":
                return self._unsubscribe(command)
            return Reply(id=command.id, action="ping", success=True, message="pong")

    async def _subscribe(self, command: Command) -> Reply:
        seconds = self._home.settings.confirm_timeout
        patterns, active = await self._subscriptions.subscribe(command.patterns, seconds)
        return success(command, patterns, active)

    def _unsubscribe(self, command: Command) -> Reply:
        patterns = self._subscriptions.unsubscribe(command.patterns)
        for pattern in patterns:
            self.activated(pattern)
        return success(command, patterns)

    # A client that does not keep up

    def filled(self) -> None:
        """More waits for the client than may: its messages are left out from here on."""
        if not self.closed:
            self.keeps_up = False
            self._left_out = LeftOut(self.form, self._home.settings.kept_bytes, self._tally)

    def leave_out(self, deliveries: Sequence[Delivery]) -> None:
        """Deal with messages that come while the client does not keep up."""
        if self._home.settings.overflow == "close":
            self.close(CloseCode.TRY_AGAIN_LATER, _TOO_SLOW, self._home.settings.write_timeout)
        elif self._left_out is not None:
            self._left_out.add(deliveries)

    def drained(self) -> None:
        """The client has caught up: tell it what it has missed, and go on."""
        self._home.expire()
        left_out, self._left_out = self._left_out, None
        if left_out is None or self.closed:
            return
        self.keeps_up = True
        left_out.over.set()
        if told := left_out.told():
            self.write(told)

    async def caught_up(self) -> None:
        """Wait until the client keeps up, or is gone: what it asks for would wait behind all the rest."""
        while self._left_out is not None:
            await self._left_out.over.wait()

    # What the hub, the connection to NATS and the app bring

    def activated(self, pattern: str) -> None:
        """There is an end to whether NATS has a subscription: it has, or the client follows it no longer."""
        if self._subscriptions.settle(pattern) and self._home.nats == "connected":
            self.send(Status(nats="connected"))

    def ended(self, pattern: str, error: BridgeError) -> None:
        """A subscription was ended, but not by the client."""
        if self.closed:
            return
        self._subscriptions.drop(pattern)
        if self._left_out is not None and (gap := self._left_out.take(pattern)):
            self.send(gap)
        self.send(Unsubscribed(subjects=[pattern], code=error.code, message=error.message))
        self.activated(pattern)

    def missed(self, pattern: str) -> None:
        """Tell the client that it may have missed messages here, by a fault of the bridge."""
        self._tally.gaps["internal"] += 1
        self.send(Gap(subjects=[pattern], lost=None, reason="internal"))

    def note_holes(self) -> None:
        """Remember which subscriptions miss messages from here on."""
        self._subscriptions.note_holes()

    def tell_holes(self) -> None:
        """Tell the client which subscriptions have missed messages up to here."""
        holes = self._subscriptions.take_holes()
        if holes:
            self._tally.gaps["nats_reconnect"] += len(holes)
            self.send(Gap(subjects=holes, lost=None, reason="nats_reconnect"))

    def tell_connected(self, status: bytes) -> None:
        """Tell the client that every subscription is live, or else let `activated` do so, once it is."""
        if self._subscriptions.settle_live():
            self.write(status)

    def repermit(self, permissions: Permissions) -> None:
        """Go by other permissions from here on; subscriptions that do not fit end."""
        for pattern in self._subscriptions.repermit(permissions):
            self.ended(pattern, SubjectForbidden(f"No longer allowed: '{pattern}'", [pattern]))
        if self._left_out is not None:
            self._left_out.drop(self._subscriptions.leaves_out)

    # The end

    def fail(self, error: BridgeError) -> None:
        """End the session for an error that no reply can mend."""
        self.close(error.close_code or CloseCode.INTERNAL, error.message)

    def expire(self) -> None:
        """End the session, for its permissions have expired; what the server, or the kernel, has may still leave."""
        self.close(CloseCode.UNAUTHORIZED, "The permissions have expired", self._home.settings.write_timeout)

    def close(self, code: CloseCode, reason: str, seconds: float | None = None) -> None:
        """End the session: the client hears why, and nothing more; it has so many seconds to take that."""
        if not self.closed:
            self._leave(code, cut=code.cuts)
            self._outlet.finish(farewell(code, reason, self._home.settings), seconds or CLOSE_SECONDS)

    def gone(self, code: int) -> None:
        """The client has ended the connection, with this WebSocket close code."""
        if not self.closed:
            self._leave(code)

    def _leave(self, code: int, *, cut: bool = False) -> None:
        self.closed = True
        self._outlet.watcher = None
        if self._pulse is not None:
            self._pulse.stop()
        if self._left_out is not None:
            self._left_out.over.set()
            self._left_out = None
        self._subscriptions.close(cut=cut)
        self._home.left(self, code)
