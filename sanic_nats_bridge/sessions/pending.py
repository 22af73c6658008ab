"""Clients that have connected but have no session yet, because the app is still asked for their permissions."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from ..auth.permissions import Permissions
from ..concurrency import ConcurrencyLimit
from ..errors import RateLimitExceeded
from ..settings import Settings

__all__ = ["PendingConnection", "PendingConnections", "limit_permissions_calls"]

_RETRY_SECONDS = 1.0


class PendingConnection:
    """A client without a session, and the permission updates since it connected.

    The app may have looked up the permissions of the client before an update, so they may be out of date.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address
        """The address of the client."""
        self.updates: dict[str, Permissions | None] = {}
        """The new permissions by identity; ``None`` if the identity was revoked."""

    def current_permissions(self, permissions: Permissions) -> Permissions | None:
        """Return the permissions of the client after the updates; ``None`` if its identity was revoked.

        Args:
            permissions: The permissions that the app has returned for the client.
        """
        if permissions.identity is None or permissions.identity not in self.updates:
            return permissions
        updated = self.updates[permissions.identity]
        return None if updated is None else replace(updated, identity=permissions.identity)


class PendingConnections:
    """All pending connections of this worker."""

    def __init__(self) -> None:
        self._pending: set[PendingConnection] = set()

    def __len__(self) -> int:
        return len(self._pending)

    @contextlib.contextmanager
    def connecting(self, address: str = "") -> Iterator[PendingConnection]:
        """Add the pending connection of a client at an address, until `discard` or the end of the block."""
        pending = PendingConnection(address)
        self._pending.add(pending)
        try:
            yield pending
        finally:
            self.discard(pending)

    def discard(self, pending: PendingConnection) -> None:
        """Remove a connection that has become a session or was rejected."""
        self._pending.discard(pending)

    def update_permissions(self, identity: str, permissions: Permissions | None) -> None:
        """Record the new permissions of an identity; ``None`` revokes it."""
        for pending in self._pending:
            pending.updates[identity] = permissions


def limit_permissions_calls(settings: Settings) -> ConcurrencyLimit:
    """Return the limit on the calls of the app's ``permissions`` function, for new sessions and for POSTs."""
    most = settings.max_permissions_calls_per_client
    return ConcurrencyLimit(
        most,
        settings.max_permissions_calls,
        client_error=lambda: RateLimitExceeded(
            f"At most {most} requests of a client at once (max_permissions_calls_per_client)",
            retry_after=_RETRY_SECONDS,
        ),
        error=lambda: RateLimitExceeded(
            "This server has too many requests in progress (max_permissions_calls); try again later",
            retry_after=_RETRY_SECONDS,
        ),
    )
