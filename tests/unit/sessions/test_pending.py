import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.sessions.pending import PendingConnections

ADA, BOB, NOBODY = (Permissions(["a"], identity=identity) for identity in ("ada", "bob", None))


def test_what_was_decided_before_a_client_came_does_not_concern_it() -> None:
    pending_connections = PendingConnections()
    pending_connections.update_permissions("ada", None)
    with pending_connections.connecting() as pending:
        assert pending.current_permissions(ADA) == ADA


def test_what_is_decided_meanwhile_holds_for_that_identity_alone() -> None:
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


def test_the_last_decision_holds() -> None:
    pending_connections = PendingConnections()
    with pending_connections.connecting() as pending:
        pending_connections.update_permissions("ada", None)
        pending_connections.update_permissions("ada", BOB)
        assert pending.current_permissions(ADA) == Permissions(["a"], identity="ada")


def test_an_arrival_counts_until_it_is_over_or_given_up() -> None:
    pending_connections = PendingConnections()
    with pending_connections.connecting() as pending:
        assert len(pending_connections) == 1
        pending_connections.discard(pending)
        assert len(pending_connections) == 0
    with pytest.raises(ZeroDivisionError), pending_connections.connecting():
        _ = 1 / len(())
    assert len(pending_connections) == 0
