"""Judges the patterns of a command before NATS hears of them."""

from collections.abc import Collection, Sequence

from ..errors import SubjectForbidden, SubscriptionLimit
from ..protocol import subjects
from .permissions import CONTROL_TOKEN, Grant, Permissions

__all__ = ["Admission"]


class Admission:
    """What a command must keep to, whoever sends it."""

    def __init__(self, max_subscriptions: int, control_prefix: str = CONTROL_TOKEN) -> None:
        self._max = max_subscriptions
        self._control = f"{control_prefix}.>"

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
        grants = [self.grant(permissions, pattern) for pattern in wanted]
        if len({*wanted, *held}) > self._max:
            raise SubscriptionLimit(f"At most {self._max} subjects for a session", wanted)
        return grants

    def grant(self, permissions: Permissions, pattern: str) -> Grant:
        """The grant for one pattern.

        Raises:
            SubjectInvalid: It is outside the grammar.
            SubjectForbidden: It is not allowed, or would reach the subjects on which bridges talk to each other.
        """
        grant = permissions.grant(pattern)
        # A wildcard in first place does not reach them anyway.
        if subjects.is_reserved(grant.real) and subjects.overlaps(self._control, grant.real):
            raise SubjectForbidden(f"Not allowed: '{pattern}'", [pattern])
        return grant
