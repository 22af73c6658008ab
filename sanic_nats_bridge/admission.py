"""Judges the patterns of a command before NATS hears of them."""

from collections.abc import Collection, Sequence

from . import subjects
from .errors import SubscriptionLimit
from .permissions import Grant, Permissions

__all__ = ["Admission"]


class Admission:
    """What a command must keep to, whoever sends it."""

    def __init__(self, max_subscriptions: int) -> None:
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

    def admit(self, permissions: Permissions, patterns: Sequence[str], held: Collection[str] = ()) -> list[Grant]:
        """The grants for the patterns, each once, when a session that holds ``held`` may follow them all.

        Raises:
            SubscriptionLimit: They are more than a session may hold, by themselves or with ``held``.
            SubjectInvalid: One is outside the grammar.
            SubjectForbidden: One is not allowed.
        """
        wanted = self.valid(patterns)
        grants = [permissions.grant(pattern) for pattern in wanted]
        if len({*wanted, *held}) > self._max:
            raise SubscriptionLimit(f"At most {self._max} subjects for a session", wanted)
        return grants
