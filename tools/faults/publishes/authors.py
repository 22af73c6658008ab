"""The identities of clients that publish, and what they may publish. Nothing here comes from the bridge."""

from typing import Any

__all__ = ["HEADER", "PATTERN", "STREAM", "SUBJECTS", "identity_of", "is_forbidden", "permissions", "real_subject"]

STREAM = "SAID"
PATTERN = "said.>"
HEADER = "Bridge-Identity"
"""The header that names the author, percent-encoded."""

_ALIAS = "mine."
_SECRET = "said.secret."

SUBJECTS = ("said.room.1", "mine.note", "said.room.2", "mine.note", "said.room.1", "said.secret.plan", "said.room.2")
"""The subjects of a client, in turn. The stream would take a message on each."""


def identity_of(number: int) -> str:
    """Return an identity. Its characters have to be encoded in a header."""
    return f"u{number} é%2F+:\n"


def permissions(identity: str) -> dict[str, Any]:
    """Return the keywords of the bridge's ``Permissions`` for a client."""
    return {
        "publish": [PATTERN],
        "deny": [f"{_SECRET}>"],
        "aliases": {_ALIAS: _target(identity)},
        "identity": identity,
    }


def real_subject(identity: str, subject: str) -> str:
    """Return the subject on NATS for a client's name of it."""
    return _target(identity) + subject.removeprefix(_ALIAS) if subject.startswith(_ALIAS) else subject


def is_forbidden(subject: str) -> bool:
    """Return whether no client may publish to a subject."""
    return subject.startswith(_SECRET)


def _target(identity: str) -> str:
    return f"said.{identity.partition(' ')[0]}."
