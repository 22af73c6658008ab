"""The publishes and requests of one session."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from ..auth.permissions import Permissions
from ..auth.publish_policy import AuthorizedPublish
from ..errors import BridgeError, CloseCode, InternalError, PublishRateExceeded, UnknownSession
from ..log_limits import limited_logger
from ..protocol.messages import Frame, Outcome, Reply
from ..protocol.publish import PublishCommand
from ..publishing.clients import ClientPublisher
from ..token_bucket import SpacedBucket
from .context import SessionContext

__all__ = ["PublishOwner", "SessionPublishes"]

logger = limited_logger()

_RETRY_SECONDS = 1.0
_MAX_REJECTED_BURSTS = 25
"""The publishes over the rate, as a multiple of ``publish_burst``, that are rejected before the session ends.

A page may publish that many at once with its client, which repeats each of them at the time that its reply names.
"""


class PublishOwner(Protocol):
    """A session, as its publishes use it."""

    key: str
    identity: str | None
    closed: bool
    is_writable: bool

    @property
    def client(self) -> str:
        """The client of the session: its identity, or else its address."""
        ...

    @property
    def permissions(self) -> Permissions:
        """The permissions of the client."""
        ...

    def send_all(self, frames: Sequence[Frame]) -> None:
        """Write frames to the client, at once."""

    async def wait_until_writable(self) -> None:
        """Wait until the client has caught up or the session has ended."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End the session."""


class SessionPublishes:
    """The publishes and requests of one session.

    Publishes leave in the order of their arrival. Those that wait for the app's check are behind each other, and so are
    all that follow them. Nothing else waits. Replies that are due in one turn of the event loop are written together,
    because a write costs as much as a publish.

    Args:
        owner: The session.
        context: The parts of the worker that its sessions share.
        clients: The publishes and requests of the worker's clients.
        reject: Counts an error; returns the outcome of the command.
    """

    __slots__ = (
        "_awaited", "_bucket", "_checks", "_clients", "_context", "_held", "_owner", "_reject", "_replies",
        "_waiting", "_waiting_bytes",
    )  # fmt: skip

    def __init__(
        self,
        owner: PublishOwner,
        context: SessionContext,
        clients: ClientPublisher,
        reject: Callable[[BridgeError, PublishCommand], Outcome],
    ) -> None:
        self._owner = owner
        self._context = context
        self._clients = clients
        self._reject = reject
        settings = context.settings
        now = asyncio.get_running_loop().time()
        burst = settings.publish_burst
        self._bucket = SpacedBucket(settings.publish_rate, burst, now, _MAX_REJECTED_BURSTS * burst)
        self._waiting: deque[PublishCommand] = deque()
        """The publishes that the app's function has still to check, or that follow such a one."""
        self._waiting_bytes = 0
        self._checks: asyncio.Task[None] | None = None
        """The task that takes them, one at a time."""
        self._awaited: set[asyncio.Future[object]] = set()
        self._held: set[asyncio.Task[None]] = set()
        """The tasks that hold a reply back until the client reads."""
        self._replies: list[Reply] = []
        """The replies to write in this turn of the event loop."""

    def count(self) -> None:
        """Count a publish or a request.

        Raises:
            PublishRateExceeded: It exceeds ``publish_rate``. The session has ended if the client goes on.
        """
        now = asyncio.get_running_loop().time()
        wait = self._bucket.admit(now)
        if not wait:
            return
        if self._bucket.is_overrun(now):
            self._owner.close(CloseCode.TOO_MANY_COMMANDS, "Too many publishes")
        rate = self._context.settings.publish_rate
        message = f"At most {rate:g} publishes and requests per second (publish_rate)"
        raise PublishRateExceeded(message, retry_after=wait)

    def execute(self, command: PublishCommand) -> Outcome | None:
        """Execute a command that was counted; return ``None`` if its reply follows.

        Raises:
            BridgeError: The command was rejected.
        """
        allowed = self._clients.authorize(self._owner.permissions, command)
        if command.action == "publish" and (self._checks or self._clients.needs_check(command, allowed)):
            self._wait(command)
            if self._checks is None:
                self._checks = asyncio.create_task(self._check_waiting())
            return None
        return self._send(command, allowed, command.payload)

    def respond(self, reply: Reply) -> None:
        """Write a reply in this turn of the event loop, after those that wait for its end."""
        self._replies.append(reply)
        if len(self._replies) == 1:
            asyncio.get_running_loop().call_soon(self.write_replies)

    def write_replies(self) -> None:
        """Write the replies that wait for the end of this turn. It may end the session."""
        if self._replies:
            replies, self._replies = self._replies, []
            self._owner.send_all(replies)

    def close(self) -> None:
        """End what is in progress."""
        self._replies.clear()
        self._waiting.clear()
        if self._checks is not None:
            self._checks.cancel()
        for future in tuple(self._awaited):
            future.cancel()
        for task in tuple(self._held):
            task.cancel()

    def _wait(self, command: PublishCommand) -> None:
        """Put a publish behind those that wait for the app's check."""
        settings, size = self._context.settings, _size_of(command)
        if len(self._waiting) >= settings.publish_burst:
            message = f"At most {settings.publish_burst} publishes of a session await the app's check (publish_burst)"
            raise PublishRateExceeded(message, [command.subject], _RETRY_SECONDS)
        if self._waiting and self._waiting_bytes + size > settings.max_pending_bytes:
            message = (
                f"At most {settings.max_pending_bytes} bytes of publishes of a session await the app's check "
                "(max_pending_bytes)"
            )
            raise PublishRateExceeded(message, [command.subject], _RETRY_SECONDS)
        self._waiting.append(command)
        self._waiting_bytes += size

    def _send(self, command: PublishCommand, allowed: AuthorizedPublish, payload: bytes) -> Outcome | None:
        sent = self._clients.send(command, allowed, payload, self._owner.key, self._owner.client)
        if isinstance(sent, Reply):
            return Outcome(sent)
        self._awaited.add(sent.future)
        sent.future.add_done_callback(partial(self._answered, command, sent.release))
        return None

    async def _check_waiting(self) -> None:
        while self._waiting:
            outcome = await self._checked(self._waiting[0])
            if self._waiting:  # else the session has ended
                self._waiting_bytes -= _size_of(self._waiting.popleft())
            if outcome is not None:
                await self._send_later(outcome.reply)
        self._checks = None

    async def _checked(self, command: PublishCommand) -> Outcome | None:
        owner, clients, payload = self._owner, self._clients, command.payload
        try:
            allowed = clients.authorize(owner.permissions, command)
            while clients.needs_check(command, allowed):
                payload = await clients.check(command, allowed, owner.identity, owner, owner.client)
                checked = allowed
                self._context.expirations.expire_due()
                if owner.closed:
                    raise UnknownSession("No such session")
                allowed = clients.authorize(owner.permissions, command)
                if allowed == checked:
                    break
            return self._send(command, allowed, payload)
        except BridgeError as error:
            return self._reject(error, command)
        except Exception:
            logger.exception("Internal error in a command; the client was notified. Please report this traceback")
            return self._reject(InternalError("Internal error"), command)

    def _answered(self, command: PublishCommand, release: Callable[[], None], future: asyncio.Future[object]) -> None:
        """Send the reply to a command whose answer has arrived, or can't arrive any more."""
        self._awaited.discard(future)
        self._context.expirations.expire_due()
        if future.cancelled() or self._owner.closed:
            release()
            return
        reply, error = self._clients.outcome(command, future)
        if error is not None:
            self._context.counters.refused[error.code] += 1
        if self._owner.is_writable:
            self.respond(reply)
            release()
            return
        # A slow client would get it only after all that is buffered for it, and could have any number buffered.
        task = asyncio.create_task(self._send_later(reply))
        self._held.add(task)
        task.add_done_callback(lambda _: release())
        task.add_done_callback(self._held.discard)

    async def _send_later(self, reply: Reply) -> None:
        await self._owner.wait_until_writable()
        self._context.expirations.expire_due()
        self.respond(reply)


def _size_of(command: PublishCommand) -> int:
    """Return the bytes of a publish that its client decides."""
    return len(command.payload) + sum([len(name) + len(value) for name, value in command.headers])
