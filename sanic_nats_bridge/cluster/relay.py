"""Commands by POST, on whichever worker or machine they arrive.

A session's id says which worker holds it. A command for a session of another worker becomes a NATS
request to that one, with what was found of the client where the POST arrived; the worker that holds
the session judges it as one of its own. The id itself stays where it arrived: the request names the
session by its key.
"""

import asyncio
import logging
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..errors import (
    BridgeError,
    CommandInvalid,
    InternalError,
    NatsUnavailable,
    SessionUnknown,
    SessionUnreachable,
    SizeLimit,
    revive,
)
from ..protocol.messages import Command, Reply, decode_command, encode
from ..protocol.session_ids import digest, worker_of
from ..sessions.registry import Sessions
from .control_channel import NobodyListensError

__all__ = ["Relay", "Requests"]

logger = logging.getLogger("sanic.root.nats_bridge")

_ASK_AGAIN_SECONDS: Final = 0.25


class Requests(Protocol):
    """What this needs of the way to other workers."""

    async def request(self, worker: str, payload: bytes, seconds: float) -> bytes:
        """What the worker answers; raises as `ControlChannel.request` does."""


class _Request(Struct, frozen=True, kw_only=True):
    session: Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
    identity: str | None
    command: msgspec.Raw


class _Refusal(Struct, frozen=True, kw_only=True):
    code: str
    message: str
    subjects: tuple[str, ...] = ()
    retry_after: float = 0


class _Outcome(Struct, frozen=True, kw_only=True):
    reply: Reply | UnsetType = UNSET
    refusal: _Refusal | UnsetType = UNSET


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_outcome = msgspec.json.Decoder(_Outcome).decode


class Relay:
    """Brings each command to the worker that holds its session."""

    def __init__(self, sessions: Sessions, requests: Requests) -> None:
        self._sessions = sessions
        self._requests = requests
        settings = sessions.settings
        self._max_bytes = settings.max_command_bytes
        self._seconds = settings.confirm_timeout + settings.relay_timeout

    async def carry_out(self, session_id: str, identity: str | None, command: Command) -> Reply:
        """Carry out a command that has arrived here, wherever its session is.

        Raises:
            SessionUnknown: There is no such session, or it is another's.
            SessionUnreachable: The worker that holds it does not answer; the command may have been
                carried out all the same.
            NatsUnavailable: Another worker holds it, and NATS is away.
            BridgeError: It was refused, and nothing has changed.
        """
        worker, key = worker_of(session_id), digest(session_id)
        if worker is None:
            raise SessionUnknown("No such session")
        if worker == self._sessions.worker:
            return await self._sessions.carry_out(key, identity, command)
        relayed = msgspec.Raw(encode(msgspec.structs.replace(command, session=UNSET)))
        request = _Request(session=key, identity=identity, command=relayed)
        return _result(await self._ask(worker, encode(request)))

    async def _ask(self, worker: str, request: bytes) -> bytes:
        try:
            try:
                return await self._requests.request(worker, request, self._seconds)
            except NobodyListensError:
                # A worker that has just lost its NATS server is back on another in a moment.
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
                return await self._requests.request(worker, request, self._seconds)
        except NobodyListensError:
            raise SessionUnknown("No such session") from None
        except TimeoutError:
            raise SessionUnreachable("The server that holds this session does not answer") from None
        except ConnectionError:
            raise NatsUnavailable("This session is on another server, and NATS is away") from None
        except ValueError:
            raise SizeLimit("This command is larger than can be passed on") from None

    async def answer(self, data: bytes) -> bytes:
        """Carry out a command that has arrived at another worker. Never raises.

        What comes is read as strictly as what comes from a client.
        """
        try:
            async with asyncio.timeout(self._seconds):
                outcome = _Outcome(reply=await self._carry_out(data))
        except BridgeError as error:
            outcome = _Outcome(refusal=_refusal(error))
        except TimeoutError:
            outcome = _Outcome(refusal=_refusal(SessionUnreachable("The session does not answer")))
        except Exception:
            logger.exception("Fault in a command from another worker")
            outcome = _Outcome(refusal=_refusal(InternalError("Internal error")))
        return encode(outcome)

    async def _carry_out(self, data: bytes) -> Reply:
        try:
            request = _decode_request(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise CommandInvalid("Not a valid command: malformed request") from None
        command = bytes(request.command)
        if len(command) > self._max_bytes:
            raise SizeLimit(f"A command is at most {self._max_bytes} bytes")
        return await self._sessions.carry_out(request.session, request.identity, decode_command(command))


def _refusal(error: BridgeError) -> _Refusal:
    retry_after = getattr(error, "retry_after", 0)
    return _Refusal(code=error.code, message=error.message, subjects=error.subjects, retry_after=retry_after)


def _result(data: bytes) -> Reply:
    try:
        outcome = _decode_outcome(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        logger.error("A reply of another worker cannot be read")
        raise InternalError("Internal error") from None
    if isinstance(outcome.refusal, _Refusal):
        refusal = outcome.refusal
        raise revive(refusal.code, refusal.message, refusal.subjects, refusal.retry_after)
    if isinstance(outcome.reply, UnsetType):
        raise InternalError("Internal error")
    return outcome.reply
