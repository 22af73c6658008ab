"""The subjects that clients of streams may see, and the patterns that they follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..patterns import matches

__all__ = ["PROFILES", "STREAMS", "Profile", "profile_of"]

STREAMS: Mapping[str, str] = {"ORDERS": "orders.>", "TRADES": "trades.>"}


@dataclass(frozen=True)
class Profile:
    """The permissions of some clients, and what they follow.

    Attributes:
        name: The first part of the identity of its clients.
        deny: Hidden always.
        toggled: Hidden at times.
        alias: The client's name for the subjects below a real prefix, or an empty string.
        target: That prefix.
        history: Whether the past may be read.
        patterns: The patterns that its clients follow, as they name them.
    """

    name: str
    patterns: Sequence[str] = field(hash=False)
    deny: tuple[str, ...] = ()
    toggled: tuple[str, ...] = ()
    alias: str = ""
    target: str = ""
    history: bool = True

    def real(self, pattern: str) -> tuple[str, str]:
        """Return the stream and the real name of a pattern."""
        if self.alias and pattern.startswith(self.alias):
            pattern = self.target + pattern.removeprefix(self.alias)
        return ("TRADES" if pattern.startswith("trades.") else "ORDERS"), pattern

    def shown(self, pattern: str, subject: str) -> str:
        """Return the name under which a pattern shows a real subject."""
        if self.alias and pattern.startswith(self.alias):
            return self.alias + subject.removeprefix(self.target)
        return subject

    def hides(self, subject: str) -> bool:
        """Return whether its clients never see a subject."""
        return any(matches(pattern, subject) for pattern in self.deny)

    def may_hide(self, subject: str) -> bool:
        """Return whether its clients don't see a subject at times."""
        return any(matches(pattern, subject) for pattern in self.toggled)

    def permissions(self, user: str, *, denied: bool = False) -> dict[str, Any]:
        """Return the keywords of the bridge's ``Permissions`` for a client.

        Args:
            user: The identity of the client.
            denied: Whether what is hidden at times is hidden now.
        """
        everything = list(STREAMS.values())
        return {
            "subscribe": everything,
            "deny": [*self.deny, *(self.toggled if denied else ())],
            "aliases": {self.alias: self.target} if self.alias else {},
            "history": everything if self.history else (),
            "identity": user,
        }


PROFILES = (
    Profile(
        "open",
        ("orders.>", "orders.1.*", "orders.*.3", "orders.2.5", "orders.0.>", "orders.9.>", "trades.>", "trades.1.*"),
    ),
    Profile("denied", ("orders.>", "orders.*.2", "trades.*.1", "orders.3.*"), deny=("orders.1.>", "trades.2.*")),
    Profile(
        "aliased",
        ("mine.>", "mine.3", "trades.0.*", "trades.*.2"),
        alias="mine.",
        target="orders.2.",
    ),
    Profile("toggled", ("orders.>", "orders.4.*", "trades.>", "orders.*.1"), toggled=("orders.4.3", "orders.1.>")),
    Profile("recent", ("orders.>", "orders.2.*", "trades.1.*", "trades.*.3"), history=False),
)


def profile_of(user: str) -> Profile:
    """Return the profile of a client by its identity."""
    return next(each for each in PROFILES if user.startswith(each.name))
