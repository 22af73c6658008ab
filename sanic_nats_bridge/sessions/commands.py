"""The commands of one session, which are limited, decoded, and executed one after another."""

import asyncio
from typing import Protocol

from ..errors import BridgeError, CloseCode, InternalError, SizeLimitExceeded, UnknownSession, UnsupportedCommand
from ..log_limits import limited_logger
from ..protocol.messages import Command, Outcome, Reply, command_id_of, decode_command
from .context import SessionContext
from .rate_limit import CommandRateLimiter, units_of

__all__ = ["CommandOwner", "SessionCommands"]

logger = limited_logger()


class CommandOwner(Protocol):
    """A session, as its commands use it."""

    closed: bool

    @property
    def client(self) -> str:
        """The client of the session: its identity, or else its address."""
        ...

    async def wait_until_writable(self) -> None:
        """Wait until the client has caught up or the session has ended."""

    async def execute_next(self, command: Command) -> Reply:
        """Execute a command that is within the limits, while no other is executed."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End the session."""

    def close_with_error(self, error: BridgeError) -> None:
        """End the session because of an error."""


class SessionCommands:
    """The commands of one session.

    Args:
        owner: The session.
        context: The parts of the worker that its sessions share.
    """

    __slots__ = ("_context", "_owner", "lock", "rate_limiter")

    def __init__(self, owner: CommandOwner, context: SessionContext) -> None:
        self._owner = owner
        self._context = context
        self.lock = asyncio.Lock()
        """Held while a command is executed."""
        self.rate_limiter = CommandRateLimiter(context.settings)

    async def execute(self, received: str | bytes | Command) -> Outcome:
        """Execute one command, as `Session.execute` does."""
        command: Command | None = None
        data = b""
        if isinstance(received, Command):
            command = received
        else:
            data = received.encode() if isinstance(received, str) else received
        try:
            self._check_size(data)
            self._count()
            if command is None:
                command = self._decode(received, data)
            return Outcome(await self._dispatch(command))
        except BridgeError as error:
            rejection = error
        except Exception:
            logger.exception("Internal error in a command; the client was notified. Please report this traceback")
            rejection = InternalError("Internal error")
        self._context.counters.refused[rejection.code] += 1
        self.rate_limiter.count_rejection(rejection)
        self._close_if_over_limit()
        if command is None:
            return Outcome.rejected(rejection, id=command_id_of(data))
        return Outcome.rejected(rejection, command.action, command.id)

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

    def _decode(self, received: object, data: bytes) -> Command:
        if not isinstance(received, str):
            raise UnsupportedCommand("Binary frames are not supported")
        return decode_command(data, history=self._context.streams is not None)

    def _close_if_over_limit(self) -> None:
        if self.rate_limiter.close_reason is not None:
            self._owner.close(CloseCode.TOO_MANY_COMMANDS, self.rate_limiter.close_reason)

    async def _dispatch(self, command: Command) -> Reply:
        async with self.lock:
            await self._owner.wait_until_writable()
            await self._context.turns.take(self._owner.client, units_of(len(command.patterns)))
            self._context.expirations.expire_due()
            if self._owner.closed:
                raise UnknownSession("No such session")
            return await self._owner.execute_next(command)
