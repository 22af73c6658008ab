"""The policy for what clients publish, applied before anything is sent to NATS."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from ..errors import InvalidCommand, PublishForbidden, SizeLimitExceeded
from ..protocol.headers import Header, author, header_block
from ..protocol.publish import MIN_ANONYMOUS_ID_CHARACTERS, PublishAction, PublishCommand, message_id
from ..protocol.subjects import includes
from .permissions import Permissions, forbidden_publish

__all__ = ["AuthorizedPublish", "PublishPolicy"]

_MESSAGE_ID_HEADER = "Nats-Msg-Id"
_ACTIONS: tuple[PublishAction, ...] = ("publish", "request")


class AuthorizedPublish(NamedTuple):
    """A publish or a request that is allowed, as it goes to NATS."""

    subject: str
    """The real subject."""

    headers: dict[str, list[str]]
    """The headers of the client: the names as in ``publish_headers``, and their values."""

    block: bytes
    """The header block: the author, the id by which JetStream drops a repeated message, and the client's headers."""


class PublishPolicy:
    """The rules for each publish and request, in addition to the permissions of its client.

    Args:
        max_bytes: The largest payload.
        headers: The names of the headers that clients may set.
        identity_header: The name of the header with the identity of the client.
        reserved: The prefixes of the subjects on which the workers communicate and get answers. No client may publish
            below them.
    """

    def __init__(
        self, *, max_bytes: int, headers: Collection[str], identity_header: str, reserved: Sequence[str]
    ) -> None:
        self._max_bytes = max_bytes
        self._names = {name.lower(): name for name in headers}
        self._identity_header = identity_header
        self._reserved_starts = tuple(f"{prefix}." for prefix in reserved)

    def check(self, permissions: Permissions) -> None:
        """Check that permissions name no subject below the reserved prefixes, on which they would have no effect.

        Raises:
            ValueError: They do.
        """
        for action in _ACTIONS:
            for pattern in permissions.reserved_patterns(action):
                if any(includes(f"{start}>", pattern) for start in self._reserved_starts):
                    raise ValueError(f"{action} must not allow the bridge's own subjects, got {pattern!a}")

    def authorize(self, permissions: Permissions, command: PublishCommand) -> AuthorizedPublish:
        """Authorize a publish or a request.

        Args:
            permissions: The permissions of the client, whose identity is the author.
            command: The command.

        Raises:
            InvalidSubject: The subject isn't a valid literal one.
            PublishForbidden: The permissions don't allow the subject, or a header isn't in ``publish_headers``.
            RequestForbidden: The permissions don't allow to send requests to the subject.
            SizeLimitExceeded: The payload is too large.
            InvalidCommand: A ``msg_id`` without an identity is too short.
        """
        subject = permissions.authorize_publish(command.subject, command.action)
        if subject.startswith(self._reserved_starts):
            raise forbidden_publish(command.subject, command.action)
        if len(command.payload) > self._max_bytes:
            raise SizeLimitExceeded(f"Data must be at most {self._max_bytes} bytes", [command.subject])
        own = self._own_headers(permissions.identity, subject, command.msg_id)
        headers = self._allowed_headers(command) if command.headers else {}
        given = [(name, value) for name, values in headers.items() for value in values]
        return AuthorizedPublish(subject, headers, header_block([*own, *given]))

    def _own_headers(self, identity: str | None, subject: str, msg_id: str | None) -> list[Header]:
        own: list[Header] = []
        if identity is not None:
            own.append((self._identity_header, author(identity)))
        if msg_id is not None:
            if identity is None and len(msg_id) < MIN_ANONYMOUS_ID_CHARACTERS:
                raise InvalidCommand(
                    "Not a valid command: without an identity 'msg_id' must have at least "
                    f"{MIN_ANONYMOUS_ID_CHARACTERS} characters"
                )
            own.append((_MESSAGE_ID_HEADER, message_id(identity, subject, msg_id)))
        return own

    def _allowed_headers(self, command: PublishCommand) -> dict[str, list[str]]:
        headers: dict[str, list[str]] = {}
        for given, value in command.headers:
            name = self._names.get(given.lower())
            if name is None:
                raise PublishForbidden(f"Not an allowed header: '{given}'", [command.subject])
            headers.setdefault(name, []).append(value)
        return headers
