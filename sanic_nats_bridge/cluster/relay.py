"""Relay of commands by POST to the worker that holds the session, on any machine.

A session's id names its worker. A command for a session of another worker becomes a NATS request with the identity of
the client that sent the POST. The other worker checks and executes it like a command of its own. The request contains
the session's key, so the secret id isn't sent over NATS.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeAlias

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
from .control_channel import UnknownWorkerError

__all__ = ["Relay", "Request"]

logger = logging.getLogger("sanic.root.nats_bridge")

_RETRY_SECONDS = 0.25


Request: TypeAlias = Callable[[str, bytes, float], Awaitable[bytes]]
"""A function such as `ControlChannel.request`, which takes the worker's id, the payload and the timeout in seconds."""


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
    """The execution of commands on the worker that holds the session.

    Args:
        sessions: The sessions of this worker.
        request: Sends a request to another worker, as `ControlChannel.request`.
    """

    def __init__(self, sessions: SessionRegistry, request: Request) -> None:
        self._sessions = sessions
        self._request = request
        settings = sessions.settings
        self._max_bytes = settings.max_command_bytes
        self._seconds = settings.confirm_timeout + settings.relay_timeout

    async def execute(self, session_id: str, identity: str | None, command: Command) -> Outcome:
        """Execute a command that has arrived at this worker, on the worker that holds its session.

        The other worker counts a rejection, so the caller must not count an outcome.

        Raises:
            UnknownSession: No such session exists, or it belongs to another client.
            UnreachableSession: The worker that holds it doesn't reply. It may have executed the command.
            NatsUnavailable: Another worker holds it, but NATS is disconnected.
            SizeLimitExceeded: The command exceeds ``max_payload`` of the NATS server.
            InternalError: The reply of the other worker is invalid.
        """
        worker, key = worker_of(session_id), digest(session_id)
        if worker is None:
            raise UnknownSession("No such session")
        if worker == self._sessions.worker:
            return await self._sessions.execute(key, identity, command)
        relayed = msgspec.Raw(encode(msgspec.structs.replace(command, session=UNSET)))
        request = _Request(session=key, identity=identity, command=relayed)
        return _outcome(await self._send(worker, encode(request)), command)

    async def _send(self, worker: str, request: bytes) -> bytes:
        try:
            try:
                return await self._request(worker, request, self._seconds)
            except UnknownWorkerError:
                # A worker that has just lost its NATS server reconnects to another within this time.
                await asyncio.sleep(_RETRY_SECONDS)
                return await self._request(worker, request, self._seconds)
        except UnknownWorkerError:
            raise UnknownSession("No such session") from None
        except TimeoutError:
            raise UnreachableSession("The server that holds this session does not answer") from None
        except ConnectionError as error:
            raise NatsUnavailable(f"This session is on another server, but {error}") from None
        except ValueError:
            raise SizeLimitExceeded(
                "This command is too large for NATS, over which it must reach another server"
            ) from None

    async def answer(self, data: bytes) -> bytes:
        """Execute a command that has arrived at another worker. Never raises.

        The request is checked as strictly as a command from a client.

        Returns:
            The encoded reply or error.
        """
        try:
            async with asyncio.timeout(self._seconds):
                outcome = await self._execute(data)
            # The session has counted a rejection.
            if outcome.error is not None:
                return encode(_Answer(refusal=_refusal(outcome.error)))
            return encode(_Answer(reply=outcome.reply))
        except BridgeError as error:
            rejection = error
        except TimeoutError:
            rejection = UnreachableSession("The session does not answer")
        except Exception:
            logger.exception("A command from another worker has failed")
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
            raise SizeLimitExceeded(f"A command must be at most {self._max_bytes} bytes")
        return await self._sessions.execute(request.session, request.identity, decode_command(command))


def _refusal(error: BridgeError) -> _Refusal:
    retry_after = getattr(error, "retry_after", 0)
    return _Refusal(code=error.code, message=error.message, subjects=error.subjects, retry_after=retry_after)


def _outcome(data: bytes, command: Command) -> Outcome:
    try:
        answer = _decode_answer(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        logger.error("Cannot decode a reply of another worker; do all workers run the same version?")
        raise InternalError("Internal error") from None
    if isinstance(answer.refusal, _Refusal):
        refusal = answer.refusal
        error = error_from_code(refusal.code, refusal.message, refusal.subjects, refusal.retry_after)
        return Outcome.rejected(error, command.action, command.id)
    if isinstance(answer.reply, UnsetType):
        raise InternalError("Internal error")
    return Outcome(answer.reply)
