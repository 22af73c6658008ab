import pytest

from sanic_nats_bridge.cluster.control_subscription import ControlSubscription


@pytest.mark.parametrize("refused", [False, True])
def test_subscription_is_pending_until_nats_has_answered(refused: bool) -> None:
    states = []
    subscription = ControlSubscription(
        "_T.all.>", lambda *_: None, lambda: states.append((subscription.is_pending, subscription.is_refused))
    )
    assert (subscription.is_pending, subscription.is_refused) == (True, False)
    if refused:
        subscription.refused()
    else:
        subscription.confirmed()
    assert states == [(False, refused)]
