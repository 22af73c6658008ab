"""Publishing and requests by the app, as `NatsBridge` offers them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..errors import SizeLimitExceeded
from ..protocol import subjects
from ..protocol.headers import header_block
from .payloads import encode_data
from .publisher import Publisher
from .results import Acknowledgement, Answer

__all__ = ["AppPublisher", "Headers"]

Headers: TypeAlias = Mapping[str, str | Sequence[str]]
"""The headers of a message: name → value or values."""

_MSG_ID = "Nats-Msg-Id"


class AppPublisher:
    """Publishing and requests by the app, which no limit on clients concerns.

    Args:
        publisher: The publisher of the worker.
        request_timeout: The time for the answer to a request, in seconds, unless the app gives another.
    """

    def __init__(self, publisher: Publisher, request_timeout: float) -> None:
        self._publisher = publisher
        self._request_timeout = request_timeout

    async def publish(
        self, subject: str, data: Any, headers: Headers | None, *, ack: bool, msg_id: str | None
    ) -> Acknowledgement | None:
        """Publish as `NatsBridge.publish` does."""
        checked, block = _literal(subject), _block(headers, msg_id)
        payload = encode_data(data)
        await self._publisher.room()
        try:
            if ack:
                return await self._publisher.store(checked, payload, block)
            self._publisher.send(checked, payload, block)
        except SizeLimitExceeded as error:
            raise ValueError(f"data is too large: {error.message}") from None
        return None

    async def request(self, subject: str, data: Any, headers: Headers | None, seconds: float | None) -> Answer:
        """Send a request as `NatsBridge.request` does."""
        checked, block = _literal(subject), _block(headers, None)
        payload = encode_data(data)
        await self._publisher.room()
        allowed = self._request_timeout if seconds is None else seconds
        try:
            return await self._publisher.request(checked, payload, block, seconds=allowed)
        except SizeLimitExceeded as error:
            raise ValueError(f"data is too large: {error.message}") from None


def _literal(subject: str) -> str:
    if not isinstance(subject, str) or not subjects.is_valid(subject) or subjects.has_wildcard(subject):
        raise ValueError(f"subject must be valid and have no wildcards, got {subject!a}")
    return subject


def _block(headers: Headers | None, msg_id: str | None) -> bytes:
    fields = list(_fields(headers)) if headers else []
    if msg_id is not None:
        fields.append((_MSG_ID, msg_id))
    try:
        return header_block(fields)
    except ValueError as error:
        raise ValueError(f"headers must be valid: {error}") from None


def _fields(headers: Headers) -> Iterator[tuple[str, str]]:
    for name, values in headers.items():
        for value in (values,) if isinstance(values, str) else values:
            yield name, value
