"""Clients that have come in, and are no session yet, for the app is still asked who they are."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from ..auth.permissions import Permissions

__all__ = ["PendingConnection", "PendingConnections"]


class PendingConnection:
    """One client, and what the app has updates about identities since it came in.

    The app may have looked the client up before that: then what it says of the client is out of date.
    """

    def __init__(self) -> None:
        self.updates: dict[str, Permissions | None] = {}
        """Their new permissions; ``None`` where they were revoked."""

    def current_permissions(self, permissions: Permissions) -> Permissions | None:
        """What holds for a client of these permissions; ``None`` where it may not come in any more."""
        if permissions.identity is None or permissions.identity not in self.updates:
            return permissions
        updates = self.updates[permissions.identity]
        return None if updates is None else replace(updates, identity=permissions.identity)


class PendingConnections:
    """All that are under way in this worker."""

    def __init__(self) -> None:
        self._under_way: set[PendingConnection] = set()

    def __len__(self) -> int:
        return len(self._under_way)

    @contextlib.contextmanager
    def connecting(self) -> Iterator[PendingConnection]:
        """One more is under way, until `over`, or at the longest until the context is left."""
        pending = PendingConnection()
        self._under_way.add(pending)
        try:
            yield pending
        finally:
            self.done(pending)

    def done(self, pending: PendingConnection) -> None:
        """It is a session now, or will be none."""
        self._under_way.discard(pending)

    def update_permissions(self, identity: str, permissions: Permissions | None) -> None:
        """Note what the app has updates about an identity; ``None``: it was revoked."""
        for pending in self._under_way:
            pending.updates[identity] = permissions
