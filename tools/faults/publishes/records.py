"""Records of the publishes of clients, with their outcomes, and of the messages in a stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["ACKNOWLEDGED", "PENDING", "UNKNOWN", "Publish", "Stored"]

ACKNOWLEDGED = "acknowledged"
PENDING = "pending"
UNKNOWN = "publish.unknown"


class Stored(NamedTuple):
    """A message in a stream."""

    sequence: int
    subject: str
    data: Any
    headers: Mapping[str, str]


@dataclass
class Publish:
    """A publish of a client, with all its attempts.

    Attributes:
        sender: The name of the client, which no other client has.
        number: Its number among those of the client. Both are in the data too.
        identity: The identity of the client.
        subject: The subject on NATS.
        data: The data.
        waited: The client has no other publish in progress.
        forbidden: The client isn't allowed to publish to the subject.
        started: The time at which it began.
        attempts: The number of times that it was sent.
        outcome: `ACKNOWLEDGED`, or the code of a refusal; `PENDING` without an answer.
        stream: The stream of the acknowledgement.
        sequence: The sequence of the acknowledgement.
        duplicate: Whether the stream had the message already, by the acknowledgement.
    """

    sender: str
    number: int
    identity: str
    subject: str
    data: Any = field(repr=False)
    waited: bool = False
    forbidden: bool = False
    started: float = 0.0
    attempts: int = 0
    outcome: str = PENDING
    stream: str | None = None
    sequence: int | None = None
    duplicate: bool | None = None

    def acknowledge(self, reply: Mapping[str, Any]) -> None:
        """Note an acknowledgement."""
        self.outcome = ACKNOWLEDGED
        self.stream, self.sequence = reply.get("stream"), reply.get("sequence")
        self.duplicate = reply.get("duplicate")
