"""Permission profiles: the permissions of clients, as the bridge is configured and as the checker understands them.

Nothing here comes from the bridge, so that the checker stays independent of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .patterns import covers, matches

__all__ = ["OPEN", "PROFILES", "Access", "PermissionProfile"]


@dataclass(frozen=True)
class PermissionProfile:
    """The subjects that a client may see, in the names that it knows.

    Attributes:
        allowed: Patterns to which it may subscribe. Narrower patterns are allowed too.
        denied: Patterns whose messages it must not receive.
        aliases: Pairs of the beginning of real subjects and its replacement for the client.
    """

    allowed: tuple[str, ...]
    denied: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    def client_name(self, subject: str) -> str:
        """Return the client's name for a subject."""
        for real, alias in self.aliases:
            if subject.startswith(real):
                return alias + subject.removeprefix(real)
        return subject

    def real_name(self, name: str) -> str:
        """Return the real subject or pattern behind the client's name for it."""
        for real, alias in self.aliases:
            if name.startswith(alias):
                return real + name.removeprefix(alias)
        return name

    def allows(self, pattern: str) -> bool:
        """Return True if the client may subscribe to the pattern."""
        inside = any(covers(allowed, pattern) for allowed in self.allowed)
        return inside and not any(covers(denied, pattern) for denied in self.denied)

    def is_denied(self, name: str) -> bool:
        """Return True if messages on the subject, by the client's name for it, are denied."""
        return any(matches(denied, name) for denied in self.denied)

    def delivers(self, pattern: str, subject: str | None) -> bool:
        """Return True if a subscriber to the pattern receives messages on the real subject."""
        return (
            subject is not None
            and matches(pattern, self.client_name(subject))
            and not self.is_denied(self.client_name(subject))
        )


class Access(NamedTuple):
    """One profile, for the bridge and for the checker.

    Attributes:
        permissions: Keywords of the bridge's ``Permissions``.
        profile: The equivalent for the checker.
        forbidden: Patterns that the bridge must reject for the client.
    """

    permissions: Mapping[str, Any]
    profile: PermissionProfile
    forbidden: Sequence[str]


OPEN = ("orders.>", "news.*", "flood.>", "noise.>", "deep.>")
_SECRET = ("secret.plans", "secret.*", "*.plans", ">")

PROFILES = {
    "open": Access({"subscribe": OPEN}, PermissionProfile(OPEN), _SECRET),
    "eu": Access(
        {"subscribe": ["orders.eu.*"]},
        PermissionProfile(("orders.eu.*",)),
        (*_SECRET, "orders.us.1", "orders.>"),
    ),
    "not-us": Access(
        {"subscribe": OPEN, "deny": ["orders.us.>"]},
        PermissionProfile(OPEN, denied=("orders.us.>",)),
        (*_SECRET, "orders.us.1", "orders.us.*"),
    ),
    "own": Access(
        {"subscribe": ["orders.eu.>"], "aliases": {"mine.": "orders.eu."}},
        PermissionProfile(("mine.>",), aliases=(("orders.eu.", "mine."),)),
        (*_SECRET, "orders.eu.1", "orders.eu.>", "orders.us.1"),
    ),
}
"""Profiles by the name that a client sends when it connects."""
