"""The replies to publishes and requests that succeeded. `failure_reply` makes the others."""

from msgspec import UNSET, Raw, UnsetType

from .encoding import encode_payload, header_fields
from .messages import Reply, quoted
from .publish import DataEncoding, PublishCommand

__all__ = ["answered_reply", "published_reply", "stored_reply"]

_ENCODINGS: dict[bytes, DataEncoding | UnsetType] = {
    b"": UNSET,
    b',"encoding":"text"': "text",
    b',"encoding":"base64"': "base64",
}


def published_reply(command: PublishCommand) -> Reply:
    """Return the reply to a publish without ``ack``, which was handed to a live connection."""
    return Reply(id=command.id, action="publish", success=True, message=_message(command))


def stored_reply(command: PublishCommand, stream: str, sequence: int, *, duplicate: bool) -> Reply:
    """Return the reply to a publish with ``ack``.

    Args:
        command: The command.
        stream: The name of the stream that has the message.
        sequence: Its number in the stream.
        duplicate: True if the stream had it already.
    """
    return Reply(
        id=command.id,
        action="publish",
        success=True,
        message=_message(command),
        stream=stream,
        sequence=sequence,
        duplicate=duplicate,
    )


def answered_reply(command: PublishCommand, payload: bytes, block: bytes | None, names: frozenset[str]) -> Reply:
    """Return the reply to a request.

    Args:
        command: The command.
        payload: The payload of the answer.
        block: Its header block, if it has one.
        names: The headers that clients get, as of a message.
    """
    data, encoding = encode_payload(payload)
    fields = header_fields(block, names) if block and names else b""
    return Reply(
        id=command.id,
        action="request",
        success=True,
        message=f"Successfully requested: {quoted([command.subject])}",
        subject=command.subject,
        headers=Raw(fields) if fields else UNSET,
        data=Raw(data),
        encoding=_ENCODINGS[encoding],
    )


def _message(command: PublishCommand) -> str:
    return f"Successfully published to: {quoted([command.subject])}"
