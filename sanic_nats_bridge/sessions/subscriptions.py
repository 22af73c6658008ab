"""What one session follows."""

from collections.abc import Sequence
from typing import Final

from ..auth.permissions import Grant, Permissions
from ..auth.policy import SubscriptionPolicy
from ..errors import ForbiddenSubject, InvalidSubject, NotSubscribed, UnknownSession
from ..hub.hub import Hub, refused_by_nats
from ..hub.interest import Interest, State, View
from ..hub.interfaces import Subscriber
from ..protocol.messages import quoted

__all__ = ["Subscriptions"]


class Subscriptions:
    """The subscriptions of one session, by the client's names for their patterns."""

    __slots__ = (
        "_changes",
        "_gaps",
        "_hub",
        "_open",
        "_policy",
        "_subscriber",
        "_unconfirmed",
        "_views",
        "permissions"
    )  # fmt: skip

    def __init__(self, subscriber: Subscriber, hub: Hub, policy: SubscriptionPolicy, permissions: Permissions) -> None:
        self._subscriber: Final = subscriber
        self._hub: Final = hub
        self._policy: Final = policy
        self.permissions = permissions
        self._open = True
        self._changes = 0
        """How often there were other permissions."""
        self._views: dict[str, View] = {}
        self._unconfirmed: set[str] = set()
        self._gaps: dict[str, None] = {}

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, as the client names them."""
        return tuple(self._views)

    async def subscribe(self, wanted: Sequence[str], seconds: float) -> tuple[list[str], bool]:
        """Follow them all; returns them, each once, and whether NATS has taken them all in time.

        Raises:
            BridgeError: One was refused, and nothing has changed.
        """
        patterns = self._policy.validate(wanted)
        while True:
            changes = self._changes
            grants = self._policy.authorize(self.permissions, patterns, self._views)
            claimed = await self._acquire(grants, seconds)
            if self._changes == changes:
                break
            self._hub.release(claimed.values())
        views = self._hub.attach(self._subscriber, [(interest, grant) for grant, interest in claimed.items()])
        self._views |= {view.pattern: view for view in views}
        waiting = {pattern for pattern in patterns if self._views[pattern].interest.state is not State.ACTIVE}
        self._unconfirmed |= waiting
        return patterns, not waiting

    async def _acquire(self, grants: Sequence[Grant], seconds: float) -> dict[Grant, Interest]:
        """The interests in what is not followed yet, claimed, once NATS has answered for all."""
        new = [grant for grant in grants if grant.pattern not in self._views]
        interests = self._hub.acquire([grant.real for grant in new], self._subscriber)
        asked = {grant.pattern: interest for grant, interest in zip(new, interests, strict=True)}
        held = {pattern: self._views[pattern].interest for pattern, *_ in grants if pattern not in asked}
        try:
            await self._hub.confirm([*held.values(), *interests], seconds)
            self._hub.flush()  # here already, for it may end this session
            if not self._open:
                raise UnknownSession("No such session")
            refused = [name for name, interest in (held | asked).items() if interest.state is State.REFUSED]
            if refused:
                raise refused_by_nats(refused)
        except BaseException:
            self._hub.release(interests)
            raise
        return dict(zip(new, interests, strict=True))

    def unsubscribe(self, wanted: Sequence[str]) -> list[str]:
        """Follow none of them any more; returns them, each once.

        Raises:
            BridgeError: One is not valid, or not followed, and nothing has changed.
        """
        patterns = self._policy.validate(wanted)
        missing = [pattern for pattern in patterns if pattern not in self._views]
        if missing:
            raise NotSubscribed(f"Not subscribed to: {quoted(missing)}", missing)
        self._hub.detach(self._subscriber, [self._views[pattern] for pattern in patterns])
        for pattern in patterns:
            self.drop(pattern)
        return patterns

    def update_permissions(self, permissions: Permissions) -> list[str]:
        """Go by other permissions from here on; returns the patterns that are not followed any more."""
        self._hub.flush()
        self.permissions = permissions
        self._changes += 1
        ended = []
        for pattern, view in tuple(self._views.items()):
            grant = self._granted(pattern)
            if grant is None or grant.real != view.grant.real:
                ended.append(pattern)
            elif grant != view.grant:
                self._views[pattern] = self._hub.change(self._subscriber, view, grant)
        self._hub.detach(self._subscriber, [self._views[pattern] for pattern in ended])
        for pattern in ended:
            self.drop(pattern)
        return ended

    def excludes(self, pattern: str, subject: str) -> bool:
        """Whether the message of a subscription is not for the client."""
        view = self._views.get(pattern)
        return view is None or (view.excludes is not None and view.excludes(subject))

    def drop(self, pattern: str) -> None:
        """Know nothing more of a subscription that has ended."""
        self._views.pop(pattern, None)
        self._gaps.pop(pattern, None)

    def settle(self, pattern: str) -> bool:
        """Nothing is left to be said of whether NATS has it; returns whether that was the last such one."""
        if pattern not in self._unconfirmed:
            return False
        self._unconfirmed.discard(pattern)
        return not self._unconfirmed

    def confirm_active(self) -> bool:
        """Nothing is left to be said of those that NATS has; returns whether these are all."""
        live = {pattern for pattern, view in self._views.items() if view.interest.state is State.ACTIVE}
        self._unconfirmed -= live
        return not self._unconfirmed

    def mark_gaps(self) -> None:
        """Remember which subscriptions miss messages from here on."""
        for pattern, view in self._views.items():
            state = view.interest.state
            if state is State.ACTIVE or (state is State.PENDING and pattern not in self._unconfirmed):
                self._gaps[pattern] = None

    def take_gaps(self) -> list[str]:
        """Which subscriptions have missed messages up to here."""
        holes, self._gaps = list(self._gaps), {}
        return holes

    def close(self, *, cut: bool = False) -> None:
        """Follow nothing any more; ``cut``: what has come already, and is not written, is not for the client."""
        self._open = False
        self._hub.detach(self._subscriber, list(self._views.values()), cut=cut)
        self._views.clear()

    def _granted(self, pattern: str) -> Grant | None:
        try:
            return self._policy.grant(self.permissions, pattern)
        except (ForbiddenSubject, InvalidSubject):
            return None
