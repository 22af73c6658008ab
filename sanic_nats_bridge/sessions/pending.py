"""Clients that have come in, and are no session yet, for the app is still asked who they are."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from ..auth.permissions import Permissions

__all__ = ["Arrival", "Arrivals"]


class Arrival:
    """One client, and what the app has decided about identities since it came in.

    The app may have looked the client up before that: then what it says of the client is out of date.
    """

    def __init__(self) -> None:
        self.decided: dict[str, Permissions | None] = {}
        """Their new permissions; ``None`` where they were revoked."""

    def up_to_date(self, permissions: Permissions) -> Permissions | None:
        """What holds for a client of these permissions; ``None`` where it may not come in any more."""
        if permissions.identity is None or permissions.identity not in self.decided:
            return permissions
        decided = self.decided[permissions.identity]
        return None if decided is None else replace(decided, identity=permissions.identity)


class Arrivals:
    """All that are under way in this worker."""

    def __init__(self) -> None:
        self._under_way: set[Arrival] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    @contextlib.contextmanager
    def arriving(self) -> Iterator[Arrival]:
        """One more is under way, until `over`, or at the longest until the context is left."""
        arrival = Arrival()
        self._under_way.add(arrival)
        try:
            yield arrival
        finally:
            self.over(arrival)

    def over(self, arrival: Arrival) -> None:
        """It is a session now, or will be none."""
        self._under_way.discard(arrival)

    def decide(self, identity: str, permissions: Permissions | None) -> None:
        """Note what the app has decided about an identity; ``None``: it was revoked."""
        for arrival in self._under_way:
            arrival.decided[identity] = permissions
