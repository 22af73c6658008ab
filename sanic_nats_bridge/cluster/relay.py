"""Relay of commands by POST to the worker that holds the session, on any machine.

A session's id names its worker. That worker is first asked whether it holds the session, by the 32 bytes of the
session's key. If it does, the command becomes a NATS request with the identity of the client that sent the POST.
The other worker checks and executes it like a command of its own. The secret id isn't sent over NATS.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..concurrency import ConcurrencyLimit
from ..errors import (
    BridgeError,
    InternalError,
    InvalidCommand,
    NatsUnavailable,
    RateLimitExceeded,
    SizeLimitExceeded,
    UnknownSession,
    UnreachableSession,
    error_from_code,
)
from ..log_limits import limited_logger
from ..protocol.messages import Command, Outcome, Reply, decode_command, encode
from ..protocol.session_ids import digest, worker_of
from ..sessions.registry import SessionRegistry
from .control_channel import UnknownWorkerError
from .questions import Questions

__all__ = ["Relay", "Request"]

logger = limited_logger()

_QUESTION_BYTES = 32
_HELD = b"1"
_NOT_HELD = b"0"
_BUSY_SECONDS = 1.0

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
        questions: The questions to other workers.
    """

    def __init__(self, sessions: SessionRegistry, request: Request, questions: Questions) -> None:
        self._sessions = sessions
        self._request = request
        self._questions = questions
        settings = sessions.settings
        most = settings.max_relays_per_client
        self.in_progress = ConcurrencyLimit(
            most,
            settings.max_relays,
            client_error=lambda: RateLimitExceeded(
                f"At most {most} commands at once for sessions of other servers", retry_after=_BUSY_SECONDS
            ),
            error=lambda: UnreachableSession("Too many commands wait for other servers; try again later"),
        )
        """The commands that wait for other workers."""
        self._max_bytes = settings.max_command_bytes
        self._seconds = settings.confirm_timeout + settings.relay_timeout

    async def execute(self, session_id: str, identity: str | None, command: Command, client: str = "") -> Outcome:
        """Execute a command that has arrived at this worker, on the worker that holds its session.

        The other worker counts a rejection, so the caller must not count an outcome.

        Args:
            session_id: The id of the session.
            identity: The identity of the client.
            command: The command.
            client: The address of the client, by which its commands are limited if it has no identity.

        Raises:
            UnknownSession: No such session exists, or it belongs to another client.
            UnreachableSession: The worker that holds it doesn't reply, so it may have executed the command; or too many
                commands wait for other workers.
            RateLimitExceeded: Too many commands of this client wait for other workers.
            NatsUnavailable: Another worker holds it, but NATS is disconnected.
            SizeLimitExceeded: The command exceeds ``max_payload`` of the NATS server.
            InternalError: The reply of the other worker is invalid.
        """
        worker, key = worker_of(session_id), digest(session_id)
        if worker is None:
            raise UnknownSession("No such session")
        if worker == self._sessions.worker:
            return await self._sessions.execute(key, identity, command)
        client = f"address {client}" if identity is None else f"identity {identity}"

        def request() -> bytes:
            relayed = msgspec.Raw(encode(msgspec.structs.replace(command, session=UNSET)))
            return encode(_Request(session=key, identity=identity, command=relayed))

        return _outcome(await self._send(worker, key, request, client), command)

    async def _send(self, worker: str, key: str, request: Callable[[], bytes], client: str) -> bytes:
        try:
            self._questions.check_existence(worker)
            with self.in_progress.counting(client):
                if await self._questions.ask(worker, bytes.fromhex(key), self._seconds) != _HELD:
                    raise UnknownSession("No such session")
                return await self._request(worker, request(), self._seconds)
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
        """Answer a question, or execute a command that has arrived at another worker. Never raises.

        The request is checked as strictly as a command from a client.

        Returns:
            The answer, or the encoded reply or error.
        """
        # Every command is longer than a question.
        if len(data) == _QUESTION_BYTES:
            return _HELD if self._sessions.holds(data.hex()) else _NOT_HELD
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
        return await self._sessions.execute(
            request.session, request.identity, decode_command(command, history=bool(self._sessions.settings.streams))
        )


def _refusal(error: BridgeError) -> _Refusal:
    return _Refusal(code=error.code, message=error.message, subjects=error.subjects, retry_after=error.retry_after)


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
