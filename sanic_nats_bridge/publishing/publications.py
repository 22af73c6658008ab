"""The app's own checks of what clients publish: the functions of `NatsBridge.on_publish`."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from ..errors import InternalError, PublishInvalid, UnreachableSession
from ..log_limits import limited_logger
from ..protocol import subjects
from ..protocol.headers import Header
from ..protocol.publish import DataEncoding
from .payloads import encode_data

__all__ = ["Encoding", "Publication", "PublishFunctions", "TimeLimits"]

logger = limited_logger()

S = TypeVar("S")
D = TypeVar("D")

Encoding: TypeAlias = Literal["", "json"] | DataEncoding
"""The form in which a client has given its data, as in `PublishCommand`."""

_MAX_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Publication(Generic[S, D]):
    """A message that a client wants to publish, without the type of its session. `NatsBridge` has the public class."""

    session: S | None
    identity: str | None
    subject: str
    data: D
    headers: Mapping[str, Sequence[str]] = field(default_factory=dict)


class TimeLimits(Protocol):
    """Timeouts that a worker which stops cuts short, implemented by Deadlines."""

    @property
    def stopping(self) -> bool:
        """True while the worker stops."""

    def within(self, seconds: float) -> AbstractAsyncContextManager[asyncio.Timeout]:
        """Limit the duration of a block, and yield the timeout."""


class _Function:
    """A registered function."""

    def __init__(self, pattern: str, schema: Any, function: Callable[[Publication[Any, Any]], object]) -> None:
        self.pattern = pattern
        # By the rules of NATS, as for `Permissions.deny`: a function for ">" checks "$KV.prefs.a" too.
        self.matches = subjects.matcher((pattern,))
        self.call = function
        self._schema = Any if schema is None else schema
        self._decode = msgspec.json.Decoder(self._schema).decode

    def decoded(self, data: bytes, encoding: Encoding) -> Any:
        """Return the data of a client in the form that the function takes.

        Raises:
            PublishInvalid: The data doesn't have this form.
        """
        try:
            if encoding == "json":
                return self._decode(data)
            return msgspec.convert(_given(data, encoding), self._schema)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PublishInvalid(f"Invalid data: {_shown(error)}") from None
        except RecursionError:
            raise PublishInvalid("Invalid data: it is nested too deeply") from None


class PublishFunctions:
    """The functions of the app that check what clients publish, in the order of their registration.

    Args:
        create: Creates a publication: session, identity, subject, data, headers.
    """

    def __init__(self, create: Callable[..., Publication[Any, Any]] = Publication) -> None:
        self._create = create
        self._functions: list[_Function] = []

    def add(self, pattern: str, schema: Any, function: Callable[[Publication[Any, Any]], object]) -> None:
        """Register a function for the subjects that match a pattern.

        Raises:
            ValueError: The pattern is invalid.
            TypeError: msgspec can't decode into the schema, or the function isn't callable.
        """
        if not isinstance(pattern, str) or not subjects.is_valid(pattern):
            raise ValueError(f"pattern must be a valid pattern, got {pattern!a}")
        if not callable(function):
            raise TypeError(f"on_publish must decorate a function, got {type(function).__name__}")
        self._functions.append(_Function(pattern, schema, function))

    def concern(self, subject: str) -> bool:
        """Return whether `check` calls a function for a real subject."""
        return self._find(subject) is not None

    def _find(self, subject: str) -> _Function | None:
        for function in self._functions:
            if function.matches(subject):
                return function
        return None

    async def check(
        self,
        subject: str,
        data: bytes,
        encoding: Encoding,
        headers: Iterable[Header],
        *,
        identity: str | None,
        session: Any | None,
        limits: TimeLimits,
        seconds: float,
    ) -> bytes:
        """Call the first function whose pattern matches; return the payload to publish.

        Args:
            subject: The real subject, which the permissions allow.
            data: The payload: JSON, the UTF-8 of a string, or bytes.
            encoding: The way in which the client has given it.
            headers: The headers of the client, one for each value.
            identity: The identity of the client.
            session: Its `Session`, or ``None``.
            limits: The timeouts of the worker.
            seconds: The time that the function may take: ``permissions_timeout``.

        Raises:
            PublishInvalid: The schema or the function refuses the data.
            InternalError: The function has failed, or has taken too long.
            UnreachableSession: The worker stops.
        """
        function = self._find(subject)
        if function is None:
            return data
        values: dict[str, list[str]] = {}
        for name, value in headers:
            values.setdefault(name, []).append(value)
        publication = self._create(session, identity, subject, function.decoded(data, encoding), values)
        replacement = await _call(function, publication, limits, seconds)
        return data if replacement is None else replacement


async def _call(
    function: _Function, publication: Publication[Any, Any], limits: TimeLimits, seconds: float
) -> bytes | None:
    timeout: asyncio.Timeout | None = None
    try:
        async with limits.within(seconds) as timeout:
            result = function.call(publication)
            if isawaitable(result):
                result = await result
        return None if result is None else _encoded(result)
    except ValueError as error:
        raise PublishInvalid(_shown(error)) from None
    except (Exception, asyncio.CancelledError) as error:
        # A CancelledError may also come from a task that the function has awaited: then it is a failure.
        if isinstance(error, asyncio.CancelledError) and _is_current_task_cancelled():
            raise
        is_late = isinstance(error, TimeoutError) and timeout is not None and timeout.expired()
        if limits.stopping and (is_late or timeout is None):
            raise UnreachableSession("The server is going away") from None
        if is_late:
            logger.error(
                "The function of on_publish(%r) took longer than 'permissions_timeout' (%s s); "
                "the publication was rejected",
                function.pattern,
                seconds,
            )
        else:
            logger.exception(
                "The function of on_publish(%r) has failed; the publication was rejected", function.pattern
            )
        raise InternalError("Internal error") from None


def _encoded(result: object) -> bytes:
    try:
        return encode_data(result)
    except ValueError as error:
        # A ValueError of the function itself is a message for the client.
        raise TypeError(f"cannot encode the data to publish: {error}") from error


def _given(data: bytes, encoding: Encoding) -> str | bytes | None:
    if encoding == "text":
        return data.decode()
    return data if encoding == "base64" else None


def _is_current_task_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _shown(error: Exception) -> str:
    """Return the message of an error for a client."""
    message = str(error)[:_MAX_MESSAGE] or "The data is refused"
    return message.encode("utf-8", "replace").decode()
