import contextlib

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.errors import RateLimitExceeded
from sanic_nats_bridge.sessions.pending import PendingConnections, limit_permissions_calls
from sanic_nats_bridge.settings import Settings

ADA, BOB, NOBODY = (Permissions(["a"], identity=identity) for identity in ("ada", "bob", None))


def test_earlier_permission_update_does_not_affect_new_connection() -> None:
    pending_connections = PendingConnections()
    pending_connections.update_permissions("ada", None)
    with pending_connections.connecting() as pending:
        assert pending.current_permissions(ADA) == ADA


def test_update_while_connecting_affects_only_its_identity() -> None:
    pending_connections = PendingConnections()
    with pending_connections.connecting() as first:
        pending_connections.update_permissions("ada", Permissions(["b"]))
        with pending_connections.connecting() as second:
            pending_connections.update_permissions("bob", None)
            assert first.current_permissions(ADA) == Permissions(["b"], identity="ada")
            assert second.current_permissions(ADA) == ADA
            for pending in (first, second):
                assert pending.current_permissions(BOB) is None
                assert pending.current_permissions(NOBODY) == NOBODY


def test_last_permission_update_wins() -> None:
    pending_connections = PendingConnections()
    with pending_connections.connecting() as pending:
        pending_connections.update_permissions("ada", None)
        pending_connections.update_permissions("ada", BOB)
        assert pending.current_permissions(ADA) == Permissions(["a"], identity="ada")


def test_pending_connection_counts_until_it_ends_or_is_discarded() -> None:
    pending_connections = PendingConnections()
    with pending_connections.connecting() as pending:
        assert len(pending_connections) == 1
        pending_connections.discard(pending)
        assert len(pending_connections) == 0
    with pytest.raises(ZeroDivisionError), pending_connections.connecting():
        _ = 1 / len(())
    assert len(pending_connections) == 0


def test_permissions_calls_in_progress_are_limited_in_total_and_by_address() -> None:
    settings = {"max_permissions_calls": 3, "max_permissions_calls_per_client": 2}
    calls = limit_permissions_calls(Settings.resolve(settings, {}))
    with contextlib.ExitStack() as stack:
        for address in ("a", "a", "b"):
            stack.enter_context(calls.counting(address))
        with pytest.raises(RateLimitExceeded, match="max_permissions_calls_per_client") as refused, calls.counting("a"):
            pass
        assert refused.value.retry_after > 0
        with pytest.raises(RateLimitExceeded, match=r"\(max_permissions_calls\)"), calls.counting("b"):
            pass
        assert len(calls) == 3
    assert len(calls) == 0
    assert not calls._by_client
    with calls.counting("a"), calls.counting("a"), calls.counting("b"):
        assert len(calls) == 3
