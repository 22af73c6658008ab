import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.sessions.pending import Arrivals

ADA, BOB, NOBODY = (Permissions(["a"], identity=identity) for identity in ("ada", "bob", None))


def test_what_was_decided_before_a_client_came_does_not_concern_it() -> None:
    arrivals = Arrivals()
    arrivals.decide("ada", None)
    with arrivals.arriving() as arrival:
        assert arrival.up_to_date(ADA) == ADA


def test_what_is_decided_meanwhile_holds_for_that_identity_alone() -> None:
    arrivals = Arrivals()
    with arrivals.arriving() as first:
        arrivals.decide("ada", Permissions(["b"]))
        with arrivals.arriving() as second:
            arrivals.decide("bob", None)
            assert first.up_to_date(ADA) == Permissions(["b"], identity="ada")
            assert second.up_to_date(ADA) == ADA
            for arrival in (first, second):
                assert arrival.up_to_date(BOB) is None
                assert arrival.up_to_date(NOBODY) == NOBODY


def test_the_last_decision_holds() -> None:
    arrivals = Arrivals()
    with arrivals.arriving() as arrival:
        arrivals.decide("ada", None)
        arrivals.decide("ada", BOB)
        assert arrival.up_to_date(ADA) == Permissions(["a"], identity="ada")


def test_an_arrival_counts_until_it_is_over_or_given_up() -> None:
    arrivals = Arrivals()
    with arrivals.arriving() as arrival:
        assert len(arrivals) == 1
        arrivals.over(arrival)
        assert len(arrivals) == 0
    with pytest.raises(ZeroDivisionError), arrivals.arriving():
        _ = 1 / len(())
    assert len(arrivals) == 0
