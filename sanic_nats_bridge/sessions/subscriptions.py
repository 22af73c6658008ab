"""The subscriptions of one session."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ..auth.permissions import Grant, Permissions
from ..auth.policy import NO_GRANTS, SubscriptionPolicy
from ..errors import ForbiddenSubject, InvalidSubject, NotSubscribed, UnknownSession
from ..hub.hub import Hub, refused_by_nats
from ..hub.interest import Interest, State, View
from ..hub.interfaces import Subscriber
from ..protocol.messages import quoted
from .pattern_shares import PatternShares

__all__ = ["NO_NAMES", "Subscriptions", "no_longer_allowed"]

# In Python 3.11, a member of an enum takes longer to look up than several calls.
_ACTIVE, _REFUSED = State.ACTIVE, State.REFUSED

NO_NAMES: frozenset[str] = frozenset()
"""One for all sessions, because each empty set takes 216 bytes."""


class Subscriptions:
    """The subscriptions of one session, by the client's names for their patterns.

    Args:
        subscriber: The session.
        hub: The subscriptions of the worker.
        policy: The rules for the patterns.
        permissions: The permissions of the session.
        shares: The patterns that each client holds.
        client: The client of the session in ``shares``.
    """

    __slots__ = (
        "_gaps",
        "_hub",
        "_losses",
        "_open",
        "_shares",
        "_subscriber",
        "_unconfirmed",
        "_views",
        "asked",
        "client",
        "followed",
        "permission_updates",
        "permissions",
        "policy",
    )

    def __init__(
        self,
        subscriber: Subscriber,
        hub: Hub,
        policy: SubscriptionPolicy,
        permissions: Permissions,
        shares: PatternShares,
        client: str,
    ) -> None:
        self._subscriber = subscriber
        self._hub = hub
        self.policy = policy
        self.permissions = permissions
        self._shares = shares
        self.client = client
        self._open = True
        self.permission_updates = 0
        """The number of times that the permissions were replaced."""
        self._views: dict[str, View] = {}
        self._unconfirmed: set[str] = set()
        """The patterns that were reported to the client as not yet active."""
        self._gaps: dict[str, None] = {}
        """The patterns that have lost messages because NATS was disconnected, and still need a gap."""
        self._losses = hub.losses
        """The number of lost connections whose gaps `_gaps` includes."""
        self.followed = _followed(policy, permissions)
        """The grants of the patterns that the session follows without a command, held or not."""
        self.asked = NO_NAMES
        """Those of them that the client has subscribed to itself."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, as the client names them."""
        return tuple(self._views)

    @property
    def views(self) -> Collection[View]:
        """The views of the hub in which the subscriber sees messages."""
        return self._views.values()

    async def subscribe(
        self,
        requested: Sequence[str],
        seconds: float,
        count: Callable[[int], None] | None = None,
        others: int = 0,
    ) -> tuple[list[str], bool]:
        """Subscribe to all patterns of a command, or to none.

        Args:
            requested: The patterns, not yet validated.
            seconds: The time that NATS has to confirm them.
            count: Called with the number of new patterns before they are authorized. May raise a `BridgeError`.
            others: The number of patterns that the session holds beside these subscriptions.

        Returns:
            The patterns without duplicates, and whether NATS has confirmed all of them.

        Raises:
            BridgeError: A pattern was rejected. No subscription has changed.
        """
        patterns = self.policy.validate(requested)
        if count is not None:
            count(sum(pattern not in self._views for pattern in patterns))
        while True:
            updates = self.permission_updates
            grants = self.policy.authorize(self.permissions, patterns, self._views, others, self.followed)
            acquired = await self._acquire(patterns, grants, seconds)
            names = {grant.pattern for grant in acquired}
            held = all(pattern in self._views or pattern in names for pattern in patterns)
            if held and self.permission_updates == updates:
                break
            # Meanwhile the permissions were replaced, so the grants may be out of date, or a pattern that was held has
            # been ended.
            self._release(acquired.values())
        self._mark_gaps()
        views = self._hub.attach(self._subscriber, [(interest, grant) for grant, interest in acquired.items()])
        self._views |= {view.pattern: view for view in views}
        unconfirmed = {pattern for pattern in patterns if self._views[pattern].interest.state is not _ACTIVE}
        self._unconfirmed |= unconfirmed
        return patterns, not unconfirmed

    async def _acquire(self, patterns: Sequence[str], grants: Sequence[Grant], seconds: float) -> dict[Grant, Interest]:
        """Acquire the interests of the new patterns, which have grants, and wait until NATS has answered for all."""
        interests = self._claim(grants)
        added = {grant.pattern: interest for grant, interest in zip(grants, interests, strict=True)}
        existing = {pattern: self._views[pattern].interest for pattern in patterns if pattern not in added}
        try:
            await self._hub.confirm([*existing.values(), *interests], seconds)
            # Before the check below, because a flush may end this session.
            self._hub.flush_to(self._subscriber)
            if not self._open:
                raise UnknownSession("No such session")
            refused = [name for name, interest in (existing | added).items() if interest.state is _REFUSED]
            if refused:
                raise refused_by_nats(refused)
        except BaseException:
            self._release(interests)
            raise
        return dict(zip(grants, interests, strict=True))

    def _claim(self, grants: Sequence[Grant]) -> list[Interest]:
        real = [grant.real for grant in grants]
        self._shares.add(self.client, real, [grant.pattern for grant in grants])
        try:
            return self._hub.acquire(real, self._subscriber)
        except BaseException:
            self._shares.remove(self.client, real)
            raise

    def _release(self, interests: Collection[Interest]) -> None:
        self._hub.release(interests)
        self._shares.remove(self.client, [interest.pattern for interest in interests])

    def unsubscribe(self, requested: Sequence[str], others: Collection[str] = ()) -> list[str]:
        """Unsubscribe from all patterns of a command, or from none; return them without duplicates.

        Args:
            requested: The patterns, not yet validated.
            others: Patterns that the session holds beside these subscriptions. They are left alone.

        Raises:
            BridgeError: A pattern is invalid or not subscribed, or is followed without a command. No subscription has
                changed.
        """
        validated = self.policy.validate(requested)
        if followed := [
            name for name in validated if name in self.followed and (name in self._views or name in others)
        ]:
            self.asked = self.asked.difference(followed)
            raise ForbiddenSubject(f"Followed without a subscribe: {quoted(followed)}", followed)
        patterns = [pattern for pattern in validated if pattern not in others]
        missing = [pattern for pattern in patterns if pattern not in self._views]
        if missing:
            raise NotSubscribed(f"Not subscribed to: {quoted(missing)}", missing)
        self._hub.detach(self._subscriber, [self._views[pattern] for pattern in patterns])
        for pattern in patterns:
            self.remove(pattern)
        return validated

    def ask(self, patterns: Iterable[str]) -> None:
        """Note that the client itself has subscribed to these patterns. They stay if they aren't followed any more."""
        if self.followed:
            self.asked = self.asked.union(pattern for pattern in patterns if pattern in self.followed)

    def update_permissions(self, permissions: Permissions) -> list[str]:
        """Replace the permissions; return the patterns whose subscriptions they have ended."""
        self._hub.flush_to(self._subscriber)
        before, asked = self.followed, self.asked
        self.followed = _followed(self.policy, permissions)
        if before or self.followed:
            self.asked = frozenset(
                name for name in self.followed if name in asked or (name in self._views and name not in before)
            )
        self.permissions = permissions
        self.permission_updates += 1
        ended = []
        for pattern, view in tuple(self._views.items()):
            is_taken = pattern in before and pattern not in self.followed and pattern not in asked
            grant = None if is_taken else self.grant_if_allowed(pattern)
            if grant is None or grant.real != view.grant.real:
                ended.append(pattern)
            elif grant != view.grant:
                self._views[pattern] = self._hub.change(self._subscriber, view, grant)
        self._hub.detach(self._subscriber, [self._views[pattern] for pattern in ended])
        for pattern in ended:
            self.remove(pattern)
        return ended

    def matching(self, subject: str) -> list[str]:
        """Return the patterns under which the client gets the messages of a subject, in the order of subscribing."""
        encoded = subject.encode()
        return [pattern for pattern, view in self._views.items() if view.shows(encoded, subject)]

    def detach(self, patterns: Sequence[str]) -> None:
        """End the delivery of those of these patterns that are held, at once. `remove` must follow for each of them."""
        held = [self._views[pattern] for pattern in patterns if pattern in self._views]
        self._hub.detach(self._subscriber, held, cut=True)

    def excludes(self, pattern: str, subject: str) -> bool:
        """Return whether the client must not receive a message of this pattern and subject."""
        view = self._views.get(pattern)
        return view is None or (view.excludes is not None and bool(view.excludes(subject)))

    def remove(self, pattern: str) -> None:
        """Remove a subscription that the hub has ended already."""
        view = self._views.pop(pattern, None)
        if view is not None:
            self._shares.remove(self.client, [view.grant.real])
        self._gaps.pop(pattern, None)
        if pattern in self.asked:
            self.asked = self.asked.difference([pattern])

    def confirm(self, pattern: str) -> bool:
        """Mark a subscription as confirmed or ended; return whether it was the last unconfirmed one."""
        if pattern not in self._unconfirmed:
            return False
        self._unconfirmed.discard(pattern)
        return not self._unconfirmed

    def confirm_active(self) -> bool:
        """Mark every subscription that NATS has confirmed; return whether none is left unconfirmed."""
        active = {pattern for pattern, view in self._views.items() if view.interest.state is _ACTIVE}
        self._unconfirmed -= active
        return not self._unconfirmed

    def take_gaps(self) -> list[str]:
        """Return the patterns that have lost messages because NATS was disconnected, each once for each time."""
        self._mark_gaps()
        patterns, self._gaps = list(self._gaps), {}
        return patterns

    def _mark_gaps(self) -> None:
        """Mark the subscriptions that have lost messages with the last connection, if this isn't done yet.

        Called before others are added, and before the gaps are sent. For all sessions at once, when the connection
        ends, it would take too long.
        """
        if self._losses == self._hub.losses:
            return
        self._losses = self._hub.losses
        for pattern, view in self._views.items():
            interest = view.interest
            if interest.state is State.REFUSED:
                continue  # the hub is about to end it
            state = interest.lost_state
            if state is _ACTIVE or (state is State.PENDING and pattern not in self._unconfirmed):
                self._gaps[pattern] = None

    def stop(self) -> None:
        """Let the commands in progress fail. `close` must follow."""
        self._open = False

    def close(self, *, cut: bool = False) -> None:
        """End all subscriptions.

        Args:
            cut: Whether messages that have arrived but aren't written yet are withheld from the client.
        """
        self._open = False
        self._hub.detach(self._subscriber, list(self._views.values()), cut=cut)
        self._shares.remove(self.client, [view.grant.real for view in self._views.values()])
        self._views.clear()

    def grant_if_allowed(self, pattern: str) -> Grant | None:
        """Return the grant of a valid pattern, or ``None`` if the permissions don't allow it."""
        try:
            return self.followed.get(pattern) or self.policy.grant(self.permissions, pattern)
        except (ForbiddenSubject, InvalidSubject):
            return None


def _followed(policy: SubscriptionPolicy, permissions: Permissions) -> Mapping[str, Grant]:
    return {grant.pattern: grant for grant in policy.followed(permissions)} if permissions.follow else NO_GRANTS


def no_longer_allowed(patterns: Sequence[str]) -> ForbiddenSubject:
    """Return the error for patterns, as a client names them, that new permissions don't allow."""
    return ForbiddenSubject(f"No longer allowed: {quoted(patterns)}", patterns)
