"""The status messages of push consumers (ADR-15)."""

import json

from ..protocol import encoding

__all__ = ["flow_control_reply", "last_of_consumer"]

_LAST_CONSUMER = frozenset(["Nats-Last-Consumer"])
_STALLED = frozenset(["Nats-Consumer-Stalled"])


def last_of_consumer(headers: bytes) -> int | None:
    """Return the number of the last message that a consumer has sent, by its idle heartbeat."""
    last = encoding.header_fields(headers, _LAST_CONSUMER)
    number = json.loads(last)["Nats-Last-Consumer"][0] if last else ""
    return int(number) if number.isdecimal() else None


def flow_control_reply(reply: bytes, headers: bytes) -> str:
    """Return the subject on which a consumer waits for an answer to its status message; empty if it doesn't wait."""
    stalled = encoding.header_fields(headers, _STALLED)
    return reply.decode("ascii", "replace") or (json.loads(stalled)["Nats-Consumer-Stalled"][0] if stalled else "")
