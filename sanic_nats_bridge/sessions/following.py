"""The patterns that a session follows without a command, because its permissions name them (`Permissions.follow`).

They are subscriptions like those of a command. What differs is when they are made, and how the client is notified:

1. The client is notified once of each, by a ``reply`` without ``id``, or by ``unsubscribed`` if it can't be followed.
2. At the start of a session nothing is executed before. The command in the query of an event stream is carried out
   together with it, with one reply, so that no message precedes that.
3. Later, each change of the permissions may add some. They wait for the command in progress, and nothing else.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ..errors import BridgeError, InternalError, NatsRefused, UnknownSession
from ..hub.hub import refused_by_nats
from ..log_limits import limited_logger
from ..protocol.messages import Command, Frame, Reply
from .commands import SessionCommands
from .context import SessionContext
from .history import SessionHistory
from .rate_limit import units_of
from .subscriptions import NO_NAMES, Subscriptions, no_longer_allowed

__all__ = ["Following", "FollowingOwner"]

logger = limited_logger()

_CONFIRM_SECONDS = 1.0
"""The time that NATS has to confirm the patterns, if that is shorter than ``confirm_timeout``.

The first commands of the client wait for that. Browser clients leave a transport if a ping isn't answered in 3 s.
"""


class FollowingOwner(Protocol):
    """A session, as its `Following` uses it."""

    closed: bool

    @property
    def client(self) -> str:
        """The client of the session: its identity, or else its address."""
        ...

    @property
    def history(self) -> SessionHistory:
        """The resumable subscriptions. The worker must have streams."""
        ...

    def send(self, frame: Frame) -> None:
        """Write a frame after all messages received so far."""

    async def subscribe(self, command: Command, count: Callable[[int], None], most: float = math.inf) -> Reply:
        """Subscribe to all patterns of a command, or to none, while no other command is executed.

        Args:
            command: The command.
            count: Called with the number of new patterns before they are authorized. May raise a `BridgeError`.
            most: The largest number of seconds that NATS has to confirm them.

        Returns:
            The reply, which the caller must write in the same turn of the event loop.

        Raises:
            BridgeError: A pattern was rejected. No subscription has changed.
        """
        ...

    def report_ended(self, patterns: list[str], error: BridgeError) -> None:
        """Remove subscriptions whose delivery has ended, and report that to the client."""

    def close_with_error(self, error: BridgeError) -> None:
        """End the session because of an error."""


class Following:
    """The patterns that one session follows without a command.

    Args:
        owner: The session.
        context: The parts of the worker that its sessions share.
        subscriptions: The subscriptions of the session.
        commands: The commands of the session.
    """

    __slots__ = ("_announced", "_commands", "_context", "_owner", "_subscriptions", "_task")

    def __init__(
        self, owner: FollowingOwner, context: SessionContext, subscriptions: Subscriptions, commands: SessionCommands
    ) -> None:
        self._owner = owner
        self._context = context
        self._subscriptions = subscriptions
        self._commands = commands
        self._announced = NO_NAMES
        """The patterns of which the client was notified."""
        self._task: asyncio.Task[None] | None = None
        """Follows what new permissions have added."""

    async def begin(self, query: Command | None) -> None:
        """Follow the patterns, execute the command in the query of an event stream, and write the replies.

        Must be called in the turn of the event loop in which the session was opened, so that no command comes before.
        """
        if query is not None:
            outcome = await self._commands.execute(query, self._subscribe_with)
            self._owner.send(outcome.reply)
        if self._unannounced():
            await self._follow()

    def update(self, ended: Sequence[str]) -> None:
        """Follow what new permissions have added.

        Args:
            ended: The patterns that they have ended. Among them are those that are others now under the same names.
        """
        followed = self._subscriptions.followed
        if self._announced:
            self._announced = frozenset(name for name in self._announced if name in followed and name not in ended)
        is_running = self._task is not None and not self._task.done()
        if not is_running and not self._owner.closed and self._unannounced():
            self._task = asyncio.create_task(self._follow(), name="natsbridge-follow")

    def history_ended(self, patterns: Sequence[str], error: BridgeError) -> None:
        """Follow patterns without history that the client had with it, unless NATS refuses them."""
        if not isinstance(error, NatsRefused):
            self.update(patterns)

    def close(self) -> None:
        """End what is in progress, because the session ends."""
        if self._task is not None:
            self._task.cancel()

    def _unannounced(self) -> list[str]:
        return [name for name in self._subscriptions.followed if name not in self._announced]

    async def _follow(self) -> None:
        """Follow all patterns of which the client wasn't notified, and write the replies."""
        try:
            async with self._commands.lock:
                await self._context.turns.take(self._owner.client, units_of(len(self._unannounced())))
                self._context.expirations.expire_due()
                while not self._owner.closed and self._unannounced():
                    reply = await self._subscribe(None)
                    if reply is not None:
                        self._owner.send(reply)
        except UnknownSession:
            pass
        except Exception:
            logger.exception(
                "Internal error while a session followed subjects; it was closed. Please report this traceback"
            )
            self._owner.close_with_error(InternalError("Internal error"))

    async def _subscribe_with(self, query: Command) -> Reply:
        """Follow the patterns, and carry the command of a query out; return the reply to both.

        Raises:
            BridgeError: The command was rejected. The patterns are followed all the same, and the client was notified.
        """
        reply = await self._subscribe(query)
        assert reply is not None
        return reply

    async def _subscribe(self, query: Command | None) -> Reply | None:
        """Subscribe to the patterns of which the client wasn't notified, and to those of a query.

        Returns:
            The reply, which the caller must write in the same turn of the event loop; ``None`` if no pattern is left.

        Raises:
            BridgeError: The query was rejected, or the session has ended.
        """
        rejection: BridgeError | None = None
        refusals: list[tuple[list[str], BridgeError]] = []
        count: Callable[[int], None] = self._commands.rate_limiter.count_patterns
        reply: Reply | None = None
        while (names := self._unannounced()) or query is not None:
            try:
                reply = await self._try(names, query, count)
                break
            except UnknownSession:
                raise
            except BridgeError as error:
                count = _uncounted
                if names != self._unannounced():
                    continue  # the permissions have changed meanwhile
                refused = _refused(names, query, error)
                if query is not None and (not refused or not {*error.subjects}.isdisjoint(query.patterns)):
                    rejection, query = _concerning(query.patterns, error), None
                if refused:
                    refusals.append((refused, _concerning(refused, error)))
                    self._announced = self._announced.union(refused)
        if reply is not None:
            self._subscribed(names, query)
        # After the reply.
        asyncio.get_running_loop().call_soon(self._report, refusals)
        if rejection is None:
            return reply
        if reply is not None:
            self._owner.send(reply)
        raise rejection

    async def _try(self, names: Sequence[str], query: Command | None, count: Callable[[int], None]) -> Reply:
        if query is None:
            command = Command(action="subscribe", subjects=[*names])
            return await self._owner.subscribe(command, _uncounted, _CONFIRM_SECONDS)
        command = msgspec.structs.replace(query, subjects=list(dict.fromkeys([*names, *query.patterns])))
        if query.start is None:
            return await self._owner.subscribe(command, lambda new: count(new - len(names)))
        self._owner.history.begin_query()
        return await self._owner.subscribe(command, count)

    def _subscribed(self, names: Sequence[str], query: Command | None) -> None:
        """Note that the session has subscribed, in the same turn of the event loop."""
        asked = () if query is None else query.patterns
        self._subscriptions.ask(asked)
        followed = self._subscriptions.followed
        self._announced = self._announced.union(name for name in names if name in followed)
        # Meanwhile the permissions may have changed so that these may be subscribed to, but aren't followed.
        if stale := [name for name in names if name not in followed and name not in asked]:
            asyncio.get_running_loop().call_soon(self._end, stale)

    def _report(self, refusals: Sequence[tuple[list[str], BridgeError]]) -> None:
        for patterns, error in refusals:
            self._context.counters.refused[error.code] += len(patterns)
            self._owner.report_ended(patterns, error)

    def _end(self, patterns: list[str]) -> None:
        self._subscriptions.detach(patterns)
        self._owner.report_ended(patterns, no_longer_allowed(patterns))


def _refused(names: list[str], query: Command | None, error: BridgeError) -> list[str]:
    """Return the followed patterns that are given up because of an error; without a query at least one."""
    if isinstance(error, NatsRefused) and (refused := [name for name in names if name in error.subjects]):
        return refused
    # Beyond a limit, some may still fit.
    return names[len(names) // 2 :] if query is None else []


def _concerning(patterns: Sequence[str], error: BridgeError) -> BridgeError:
    """Return the error for those of its patterns that are among these."""
    subjects = [name for name in error.subjects if name in patterns]
    if isinstance(error, NatsRefused):
        return refused_by_nats(subjects)
    error.subjects = tuple(subjects)
    return error


def _uncounted(patterns: int) -> None:
    """Count nothing, because the client didn't ask for the patterns."""
