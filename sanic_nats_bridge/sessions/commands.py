"""The commands of one session, which are limited, decoded, and executed one after another."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from ..errors import BridgeError, CloseCode, InternalError, SizeLimitExceeded, UnknownSession, UnsupportedCommand
from ..log_limits import limited_logger
from ..protocol.messages import Command, Frame, Outcome, Reply, command_id_of, decode_command
from ..protocol.publish import PublishCommand
from .context import SessionContext
from .publishes import PublishOwner, SessionPublishes
from .rate_limit import CommandRateLimiter, units_of

__all__ = ["CommandOwner", "SessionCommands"]

logger = limited_logger()


class CommandOwner(PublishOwner, Protocol):
    """A session, as its commands use it."""

    def send(self, frame: Frame) -> None:
        """Write a frame to the client."""

    async def execute_next(self, command: Command) -> Reply:
        """Execute a command that is within the limits, while no other is executed."""

    def close_with_error(self, error: BridgeError) -> None:
        """End the session because of an error."""


class SessionCommands:
    """The commands of one session.

    Args:
        owner: The session.
        context: The parts of the worker that its sessions share.
    """

    __slots__ = ("_context", "_owner", "_publishes", "lock", "rate_limiter")

    def __init__(self, owner: CommandOwner, context: SessionContext) -> None:
        self._owner = owner
        self._context = context
        self.lock = asyncio.Lock()
        """Held while a command is executed."""
        self.rate_limiter = CommandRateLimiter(context.settings)
        self._publishes: SessionPublishes | None = None

    async def receive(self, frame: str | bytes) -> Outcome | None:
        """Execute the command in a frame, as `Session.receive` does."""
        data = frame.encode() if isinstance(frame, str) else frame
        command: Command | PublishCommand | BridgeError | None = None
        try:
            self._check_size(data)
            command = self._decoded(frame, data)
            if isinstance(command, PublishCommand):
                return await self._publish(command)
            self._count()
            if isinstance(command, BridgeError):
                raise command
            return Outcome(await self._dispatch(command))
        except BridgeError as error:
            rejection = error
        except Exception:
            logger.exception("Internal error in a command; the client was notified. Please report this traceback")
            rejection = InternalError("Internal error")
        if isinstance(command, Command | PublishCommand):
            return self._rejected(rejection, command)
        return self._rejected(rejection, None, data)

    async def execute(
        self, command: Command, carry_out: Callable[[Command], Awaitable[Reply]] | None = None
    ) -> Outcome:
        """Execute one decoded command, as `Session.execute` does, or with ``carry_out`` in place of the owner's."""
        try:
            self._count()
            return Outcome(await self._dispatch(command, carry_out))
        except BridgeError as error:
            rejection = error
        except Exception:
            logger.exception("Internal error in a command; the client was notified. Please report this traceback")
            rejection = InternalError("Internal error")
        return self._rejected(rejection, command)

    def respond(self, reply: Reply) -> None:
        """Write the reply to a command, as `Session.respond` does."""
        if self._publishes is None:
            self._owner.send(reply)
            return
        self._publishes.respond(reply)
        if reply.action not in ("publish", "request"):
            # It must precede the first message.
            self.write_replies()

    def write_replies(self) -> None:
        """Write the replies that wait for the end of this turn. It may end the session."""
        if self._publishes is not None:
            self._publishes.write_replies()

    def close(self) -> None:
        """End what is in progress."""
        if self._publishes is not None:
            self._publishes.close()

    def reject(self, error: BridgeError) -> None:
        """Count a command that was rejected before it was received in full, and end the session."""
        if not self._owner.closed:
            self._context.counters.refused[error.code] += 1
            self._owner.close_with_error(error)

    def count_control_frame(self) -> None:
        """Count a ping, or another frame without a command, as a command, because it costs as much."""
        self.rate_limiter.count_control_frame()
        self._close_if_over_limit()

    def _check_size(self, data: bytes) -> None:
        max_bytes = self._context.settings.max_command_bytes
        if len(data) > max_bytes:
            error = SizeLimitExceeded(f"A command must be at most {max_bytes} bytes")
            self._owner.close_with_error(error)
            raise error

    def _count(self) -> None:
        try:
            self.rate_limiter.count()
        finally:
            self._close_if_over_limit()

    def _decoded(self, frame: str | bytes, data: bytes) -> Command | PublishCommand | BridgeError:
        """Return the command in a frame, or an error, which is counted before it is reported."""
        try:
            if not isinstance(frame, str):
                raise UnsupportedCommand("Binary frames are not supported")
            has_history = self._context.streams is not None
            if self._context.publishing is None:
                return decode_command(data, history=has_history)
            return decode_command(data, history=has_history, publish=True)
        except BridgeError as error:
            return error

    def _rejected(self, error: BridgeError, command: Command | PublishCommand | None, data: bytes = b"") -> Outcome:
        """Count an error; return the outcome of the command, or of data that isn't one."""
        self._context.counters.refused[error.code] += 1
        self.rate_limiter.count_rejection(error)
        self._close_if_over_limit()
        if command is None:
            return Outcome.rejected(error, id=command_id_of(data))
        return Outcome.rejected(error, command.action, command.id)

    def _close_if_over_limit(self) -> None:
        if self.rate_limiter.close_reason is not None:
            self._owner.close(CloseCode.TOO_MANY_COMMANDS, self.rate_limiter.close_reason)

    async def _dispatch(
        self, command: Command, carry_out: Callable[[Command], Awaitable[Reply]] | None = None
    ) -> Reply:
        async with self.lock:
            await self._owner.wait_until_writable()
            await self._context.turns.take(self._owner.client, units_of(len(command.patterns)))
            self._context.expirations.expire_due()
            if self._owner.closed:
                raise UnknownSession("No such session")
            return await (carry_out or self._owner.execute_next)(command)

    async def _publish(self, command: PublishCommand) -> Outcome | None:
        if self._publishes is None:
            assert self._context.publishing is not None
            self._publishes = SessionPublishes(self._owner, self._context, self._context.publishing, self._rejected)
        self._publishes.count()
        await self._owner.wait_until_writable()
        await self._context.turns.take(self._owner.client, units_of(1))
        self._context.expirations.expire_due()
        if self._owner.closed:
            raise UnknownSession("No such session")
        return self._publishes.execute(command)
