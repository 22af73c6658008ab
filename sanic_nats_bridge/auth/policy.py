"""The policy for the patterns of a command, applied before a SUB is sent."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from ..errors import ForbiddenSubject, SubscriptionLimitExceeded
from ..protocol import subjects
from .permissions import CONTROL_TOKEN, Grant, Permissions

__all__ = ["NO_GRANTS", "SubscriptionPolicy"]

NO_GRANTS: Mapping[str, Grant] = MappingProxyType({})
"""The grants by pattern of a session that follows nothing without a command."""


class SubscriptionPolicy:
    """The rules for the patterns of every command, in addition to the permissions of its client.

    Args:
        max_subscriptions: The largest number of patterns of one session.
        control_prefix: The prefix of the subjects on which the workers communicate. No client may subscribe to them.
    """

    def __init__(self, max_subscriptions: int, control_prefix: str = CONTROL_TOKEN) -> None:
        self._max = max_subscriptions
        self._control = f"{control_prefix}.>"

    def validate(self, patterns: Sequence[str]) -> list[str]:
        """Validate the patterns of a command; return each of them once.

        Raises:
            SubscriptionLimitExceeded: There are more than a session may hold.
            InvalidSubject: One is outside the grammar.
        """
        if len(patterns) > self._max:
            raise SubscriptionLimitExceeded(f"At most {self._max} subjects for a session", patterns)
        return [subjects.validate(pattern) for pattern in dict.fromkeys(patterns)]

    def authorize(
        self,
        permissions: Permissions,
        patterns: Sequence[str],
        held: Collection[str] = (),
        others: int = 0,
        followed: Mapping[str, Grant] = NO_GRANTS,
    ) -> list[Grant]:
        """Authorize those of the patterns that the session doesn't hold yet.

        Those that it holds need no decision: `Subscriptions.update_permissions` ends what isn't allowed any more.

        Args:
            permissions: The permissions of the session.
            patterns: The patterns of the command, as `validate` has returned them.
            held: The patterns to which the session is subscribed.
            others: The number of patterns that it holds in another way.
            followed: The grants of patterns that need no permission to subscribe, from `followed`.

        Raises:
            InvalidSubject: The real pattern behind an alias is too long or has too many tokens.
            ForbiddenSubject: One is not allowed.
            SubscriptionLimitExceeded: Together with those held they are more than a session may hold.
        """
        grants = [
            followed.get(pattern) or self.grant(permissions, pattern) for pattern in patterns if pattern not in held
        ]
        if len(grants) + len(held) + others > self._max:
            raise SubscriptionLimitExceeded(f"At most {self._max} subjects for a session", patterns)
        return grants

    def followed(self, permissions: Permissions) -> list[Grant]:
        """Return the grants of the patterns that a session follows from its start.

        Raises:
            ValueError: They are more than a session may hold, or overlap the subjects on which the workers communicate.
        """
        if len(permissions.follow) > self._max:
            raise ValueError(
                f"follow must be at most max_subscriptions ({self._max}) patterns, got {len(permissions.follow)}"
            )
        grants = permissions.followed
        for grant in grants:
            if self._overlaps_control(grant):
                raise ValueError(f"follow must not allow the bridge's own subjects, got {grant.real!a}")
        return grants

    def grant(self, permissions: Permissions, pattern: str) -> Grant:
        """Authorize one valid pattern.

        Raises:
            InvalidSubject: The real pattern behind an alias is too long or has too many tokens.
            ForbiddenSubject: It isn't allowed, or it overlaps the subjects on which the workers communicate.
        """
        grant = permissions.authorize(pattern)
        if self._overlaps_control(grant):
            raise ForbiddenSubject(f"Not allowed: '{pattern}'", [pattern])
        return grant

    def _overlaps_control(self, grant: Grant) -> bool:
        # A wildcard in first place doesn't match reserved subjects.
        return subjects.is_reserved(grant.real) and subjects.overlaps(self._control, grant.real)
