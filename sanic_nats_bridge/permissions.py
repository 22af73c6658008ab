"""Who may follow what, and how much of it."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from . import subjects
from .errors import SubjectForbidden, SubscriptionLimit

__all__ = ["CONTROL_TOKEN", "Admission", "Permissions"]

CONTROL_TOKEN: Final = "_NATSBRIDGE"
"""First token of the subjects on which bridges talk to each other; never open to a client."""


class Permissions:
    """The patterns that clients may follow; none by default.

    A requested pattern must lie wholly inside an allowed one, so that its every message would have
    been allowed on its own: ``orders.*`` is not inside ``orders.eu.>``.
    """

    def __init__(self, subscribe: Iterable[str] = ()) -> None:
        self.subscribe = tuple(subjects.validate(pattern) for pattern in subscribe)

    def require(self, pattern: str) -> None:
        """Let the pattern pass.

        Raises:
            SubjectForbidden: It is not wholly inside an allowed pattern, or is one of the bridge's own.
        """
        control = pattern.partition(".")[0] == CONTROL_TOKEN
        if control or not any(subjects.covers(allowed, pattern) for allowed in self.subscribe):
            raise SubjectForbidden(f"Not allowed: '{pattern}'", [pattern])


class Admission:
    """Judges the patterns of a command before NATS hears of them."""

    def __init__(self, permissions: Permissions, max_subscriptions: int) -> None:
        self._permissions = permissions
        self._max = max_subscriptions

    def valid(self, patterns: Sequence[str]) -> list[str]:
        """The patterns, each once.

        Raises:
            SubscriptionLimit: They are more than a session may hold.
            SubjectInvalid: One is outside the grammar.
        """
        if len(patterns) > self._max:
            raise SubscriptionLimit(f"At most {self._max} subjects for a session", patterns)
        return [subjects.validate(pattern) for pattern in dict.fromkeys(patterns)]

    def admit(self, patterns: Sequence[str], held: Collection[str] = ()) -> list[str]:
        """The patterns, each once, when a session that holds ``held`` may follow them all.

        Raises:
            SubscriptionLimit: They are more than a session may hold, by themselves or with ``held``.
            SubjectInvalid: One is outside the grammar.
            SubjectForbidden: One is not allowed.
        """
        wanted = self.valid(patterns)
        for pattern in wanted:
            self._permissions.require(pattern)
        if len({*wanted, *held}) > self._max:
            raise SubscriptionLimit(f"At most {self._max} subjects for a session", wanted)
        return wanted
