"""One browser connection with its subscriptions, on either transport."""

import asyncio
import random
import secrets
from collections.abc import Sequence
from typing import Final, Protocol

from . import wire
from .errors import BridgeError, CloseCode, NotSubscribed, SessionUnknown
from .hub import Hub
from .interest import Interest, State
from .left_out import LeftOut
from .outlet import CLOSE_SECONDS, Outlet
from .permissions import Admission
from .protocol import Close, Command, Frame, Gap, NatsState, Reply, Status, Unsubscribed, Welcome
from .pulse import Pulse
from .settings import Settings
from .wire import Delivery

__all__ = ["Session", "SessionHome", "farewell"]

_TOO_SLOW: Final = "Too slow: more waits for this client than may"


class SessionHome(Protocol):
    """What a session needs of the worker that it lives in."""

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

    def left(self, session: "Session", code: int) -> None:
        """The session has ended, with this WebSocket close code."""


class Session:
    """One browser connection. Handlers of the bridge's signals get it; they only read it."""

    __slots__ = (
        "__weakref__", "_holes", "_home", "_hub", "_interests", "_left_out", "_one_at_a_time", "_outlet", "_pulse",
        "_unconfirmed", "closed", "form", "id", "keeps_up", "write",
    )  # fmt: skip

    def __init__(self, home: SessionHome, outlet: Outlet) -> None:
        # Set once.
        self.id: Final = secrets.token_urlsafe(24)
        self.form: Final = outlet.form
        self.write: Final = outlet.write
        self._home = home
        self._hub = home.hub
        self._outlet = outlet
        outlet.watcher = self
        self._one_at_a_time = asyncio.Lock()
        # Changed in the event loop alone.
        self.closed = False
        self.keeps_up = True
        self._interests: dict[str, Interest] = {}
        self._unconfirmed: set[str] = set()
        self._holes: dict[str, None] = {}
        self._pulse: Pulse | None = None
        self._left_out: LeftOut | None = None

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The patterns that the session follows."""
        return tuple(self._interests)

    def send(self, frame: Frame) -> None:
        """Write a frame to the client, behind everything that was written before."""
        if not self.closed:
            self._outlet.send(frame)

    def begin(self) -> None:
        """Write the first frame, and keep the connection alive from here on."""
        settings = self._home.settings
        heartbeat = int(settings.heartbeat) if settings.heartbeat.is_integer() else settings.heartbeat
        welcome = Welcome(session=self.id, heartbeat=heartbeat, nats=self._home.nats)
        self._outlet.send(welcome, _jittered(settings.retry))
        self._pulse = Pulse(self._outlet, settings)

    # Commands

    async def handle(self, command: Command) -> Reply:
        """Carry one command out, after those that came before it.

        The reply must be written before the event loop turns: then it stands before the first message.

        Raises:
            BridgeError: It was refused, and nothing has changed.
        """
        async with self._one_at_a_time:
            await self.caught_up()
            if self.closed:
                raise SessionUnknown("No such session")
            if command.action == "subscribe":
                return await self._subscribe(command)
            if command.action == "unsubscribe":
                return self._unsubscribe(command)
            return Reply(id=command.id, action="ping", success=True, message="pong")

    async def _subscribe(self, command: Command) -> Reply:
        patterns = self._home.admission.admit(_patterns(command), self._interests)
        held = [self._interests[pattern] for pattern in patterns if pattern in self._interests]
        interests = self._hub.claim([pattern for pattern in patterns if pattern not in self._interests])
        try:
            await self._hub.confirm([*held, *interests], self._home.settings.confirm_timeout)
            if self.closed:
                raise SessionUnknown("No such session")
        except BaseException:
            self._hub.release(interests)
            raise
        self._hub.attach(self, interests)
        self._interests |= {interest.pattern: interest for interest in interests}
        waiting = {pattern for pattern in patterns if self._interests[pattern].state is not State.LIVE}
        self._unconfirmed |= waiting
        return Reply(
            id=command.id,
            action="subscribe",
            success=True,
            message=f"Successfully connected to events: {_quoted(patterns)}",
            subjects=patterns,
            active=not waiting,
        )

    def _unsubscribe(self, command: Command) -> Reply:
        patterns = self._home.admission.valid(_patterns(command))
        missing = [pattern for pattern in patterns if pattern not in self._interests]
        if missing:
            raise NotSubscribed(f"Not subscribed to: {_quoted(missing)}", missing)
        self._hub.detach(self, [self._drop(pattern) for pattern in patterns])
        for pattern in patterns:
            self._settle(pattern)
        return Reply(
            id=command.id,
            action="unsubscribe",
            success=True,
            message=f"Successfully disconnected from events: {_quoted(patterns)}",
            subjects=patterns,
        )

    def _drop(self, pattern: str) -> Interest:
        self._holes.pop(pattern, None)
        return self._interests.pop(pattern)

    def _settle(self, pattern: str) -> None:
        """Nothing is left to be said of this subscription; tell the client when that was the last."""
        if pattern in self._unconfirmed:
            self._unconfirmed.discard(pattern)
            if not self._unconfirmed and self._home.nats == "connected":
                self.send(Status(nats="connected"))

    # A client that does not keep up

    def filled(self) -> None:
        """More waits for the client than may: its messages are left out from here on."""
        if not self.closed:
            self.keeps_up = False
            self._left_out = LeftOut(self.form, self._home.settings.kept_bytes)

    def leave_out(self, deliveries: Sequence[Delivery]) -> None:
        """Deal with messages that come while the client does not keep up."""
        if self._home.settings.overflow == "close":
            self.close(CloseCode.TRY_AGAIN_LATER, _TOO_SLOW, self._home.settings.write_timeout)
        elif self._left_out is not None:
            self._left_out.add(deliveries)

    def drained(self) -> None:
        """The client has caught up: tell it what it has missed, and go on."""
        left_out, self._left_out = self._left_out, None
        if left_out is None or self.closed:
            return
        self.keeps_up = True
        left_out.over.set()
        gaps = [wire.encode_frame(_gap(pattern, lost), self.form) for pattern, lost in left_out.lost]
        told = b"".join([*gaps, *left_out.kept])
        if told:
            self.write(told)

    async def caught_up(self) -> None:
        """Wait until the client keeps up, or is gone: what it asks for would wait behind all the rest."""
        while self._left_out is not None:
            await self._left_out.over.wait()

    # What the hub and the connection to NATS bring

    def activated(self, pattern: str) -> None:
        """NATS has taken a subscription after the client was told that it had not."""
        self._settle(pattern)

    def ended(self, pattern: str, error: BridgeError) -> None:
        """The hub has ended a subscription."""
        self._drop(pattern)
        if self._left_out is not None and (lost := self._left_out.take(pattern)):
            self.send(_gap(pattern, lost))
        self.send(Unsubscribed(subjects=[pattern], code=error.code, message=error.message))
        self._settle(pattern)

    def note_holes(self) -> None:
        """Remember which subscriptions miss messages from here on."""
        for pattern, interest in self._interests.items():
            told_live = interest.state is State.PENDING and pattern not in self._unconfirmed
            if interest.state is State.LIVE or told_live:
                self._holes[pattern] = None

    def tell_holes(self) -> None:
        """Tell the client which subscriptions have missed messages up to here."""
        if self._holes:
            self.send(Gap(subjects=list(self._holes), lost=None, reason="nats_reconnect"))
            self._holes.clear()

    def tell_connected(self, status: bytes) -> None:
        """Tell the client that every subscription is live."""
        self._unconfirmed.clear()
        self.write(status)

    # The end

    def fail(self, error: BridgeError) -> None:
        """End the session for an error that no reply can mend."""
        self.close(error.close_code or CloseCode.INTERNAL, error.message)

    def close(self, code: CloseCode, reason: str, seconds: float | None = None) -> None:
        """End the session: the client hears why, and nothing more; it has so many seconds to take that."""
        if not self.closed:
            self._leave(code)
            self._outlet.finish(farewell(code, reason, self._home.settings.retry), seconds or CLOSE_SECONDS)

    def gone(self, code: int) -> None:
        """The client has ended the connection, with this WebSocket close code."""
        if not self.closed:
            self._leave(code)

    def _leave(self, code: int) -> None:
        self.closed = True
        self._outlet.watcher = None
        if self._pulse is not None:
            self._pulse.stop()
        if self._left_out is not None:
            self._left_out.over.set()
            self._left_out = None
        self._hub.detach(self, list(self._interests.values()))
        self._interests.clear()
        self._home.left(self, code)


def farewell(code: CloseCode, reason: str, retry: float) -> Close:
    """The last frame of a session that the bridge ends; ``retry`` is in seconds."""
    if not code.spread:
        return Close(code=code, reason=reason, reconnect=code.reconnect)
    return Close(code=code, reason=reason, reconnect=code.reconnect, retry=_jittered(retry))


def _gap(pattern: str, lost: int) -> Gap:
    return Gap(subjects=[pattern], lost=lost, reason="slow_consumer")


def _jittered(seconds: float) -> int:
    """Milliseconds between once and twice that long, so that many do not come back at one moment."""
    return int(random.uniform(1, 2) * seconds * 1000)


def _patterns(command: Command) -> list[str]:
    return command.subjects if isinstance(command.subjects, list) else []


def _quoted(patterns: Sequence[str]) -> str:
    return ", ".join(f"'{pattern}'" for pattern in patterns)
