"""Commands by POST, on whichever worker or machine they arrive.

A session's id says which worker holds it. A command for a session of another worker becomes a NATS
request to that one, with what was found of the client where the POST arrived; the worker that holds
the session judges it as one of its own. The id itself stays where it arrived: the request names the
session by its key.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..errors import (
    BridgeError,
    InternalError,
    InvalidCommand,
    NatsUnavailable,
    SizeLimitExceeded,
    UnknownSession,
    UnreachableSession,
    error_from_code,
)
from ..protocol.messages import Command, Outcome, Reply, decode_command, encode
from ..protocol.session_ids import digest, worker_of
from ..sessions.registry import SessionRegistry
from .control_channel import NobodyListensError

__all__ = ["Relay", "Request"]

logger = logging.getLogger("sanic.root.nats_bridge")

_ASK_AGAIN_SECONDS: Final = 0.25


Request: TypeAlias = Callable[[str, bytes, float], Awaitable[bytes]]
"""Sends a request to a worker; takes its id, the payload and the timeout in seconds, as `ControlChannel.request`."""


class _Request(Struct, frozen=True, kw_only=True):
    session: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
    identity: str | None
    command: msgspec.Raw


class _Refusal(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    subjects: tuple[str, ...] = ()
    retry_after: float = 0


class _Answer(Struct, frozen=True, kw_only=True):
    reply: Reply | UnsetType = UNSET
    refusal: _Refusal | UnsetType = UNSET


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class Relay:
    """Brings each command to the worker that holds its session.

    Args:
        sessions: The sessions of this worker.
        request: Sends a request to another worker.
    """

    def __init__(self, sessions: SessionRegistry, request: Request) -> None:
        self._sessions = sessions
        self._request = request
        settings = sessions.settings
        self._max_bytes = settings.max_command_bytes
        self._seconds = settings.confirm_timeout + settings.relay_timeout

    async def execute(self, session_id: str, identity: str | None, command: Command) -> Outcome:
        """Execute a command that has arrived here, on the worker that holds its session.

        That worker counts a rejection as its own, so an outcome needs no counting.

        Raises:
            UnknownSession: There is no such session, or it belongs to another client.
            UnreachableSession: The worker that holds it does not answer; the command may have been executed
                all the same.
            NatsUnavailable: Another worker holds it, and NATS is away.
            SizeLimitExceeded: The command is larger than NATS takes.
            InternalError: The reply of the other worker cannot be read.
        """
        worker, key = worker_of(session_id), digest(session_id)
        if worker is None:
            raise UnknownSession("No such session")
        if worker == self._sessions.worker:
            return await self._sessions.execute(key, identity, command)
        relayed = msgspec.Raw(encode(msgspec.structs.replace(command, session=UNSET)))
        request = _Request(session=key, identity=identity, command=relayed)
        return _outcome(await self._ask(worker, encode(request)), command)

    async def _ask(self, worker: str, request: bytes) -> bytes:
        try:
            try:
                return await self._request(worker, request, self._seconds)
            except NobodyListensError:
                # A worker that has just lost its NATS server is back on another in a moment.
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                return await self._request(worker, request, self._seconds)
        except NobodyListensError:
            raise UnknownSession("No such session") from None
        except TimeoutError:
            raise UnreachableSession("The server that holds this session does not answer") from None
        except ConnectionError:
            raise NatsUnavailable("This session is on another server, and NATS is away") from None
        except ValueError:
            raise SizeLimitExceeded("This command is larger than can be passed on") from None

    async def answer(self, data: bytes) -> bytes:
        """Execute a command that has arrived at another worker; return the encoded outcome. Never raises.

        The request is checked as strictly as a command from a client.
        """
        try:
            async with asyncio.timeout(self._seconds):
                outcome = await self._execute(data)
            error = outcome.error
            if error is None:
                return encode(_Answer(reply=outcome.reply))
            return encode(_Answer(refusal=_refusal(error)))
        except BridgeError as error:
            rejection = error
        except TimeoutError:
            rejection = UnreachableSession("The session does not answer")
        except Exception:
            logger.exception("Fault in a command from another worker")
            rejection = InternalError("Internal error")
        self._sessions.count_rejected(rejection)
        return encode(_Answer(refusal=_refusal(rejection)))

    async def _execute(self, data: bytes) -> Outcome:
        try:
            request = _decode_request(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise InvalidCommand("Not a valid command: malformed request") from None
        command = bytes(request.command)
        if len(command) > self._max_bytes:
            raise SizeLimitExceeded(f"A command is at most {self._max_bytes} bytes")
        return await self._sessions.execute(request.session, request.identity, decode_command(command))


def _refusal(error: BridgeError) -> _Refusal:
    retry_after = getattr(error, "retry_after", 0)
    return _Refusal(code=error.code, message=error.message, subjects=error.subjects, retry_after=retry_after)


def _outcome(data: bytes, command: Command) -> Outcome:
    try:
        answer = _decode_answer(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        logger.error("A reply of another worker cannot be read")
        raise InternalError("Internal error") from None
    if isinstance(answer.refusal, _Refusal):
        refusal = answer.refusal
        error = error_from_code(refusal.code, refusal.message, refusal.subjects, refusal.retry_after)
        return Outcome.rejected(error, command.action, command.id)
    if isinstance(answer.reply, UnsetType):
        raise InternalError("Internal error")
    return Outcome(answer.reply)
