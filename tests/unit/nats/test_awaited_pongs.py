from sanic_nats_bridge.nats.awaited_pongs import AwaitedPongs, Confirmation, Removal


def test_entries_are_taken_in_their_order() -> None:
    pongs = AwaitedPongs()
    future = object()  # as nats-py appends it
    pongs.append(future)
    pongs.await_confirmation(1)
    pongs.append(Removal(1))
    assert [pongs.take() for _ in range(4)] == [future, Confirmation(1), Removal(1), None]


def test_oldest_subscription_without_confirmation_is_known() -> None:
    pongs = AwaitedPongs()
    seen = [pongs.unconfirmed]
    pongs.append(Removal(7))
    for sid in (1, 2):
        pongs.await_confirmation(sid)
    while pongs:
        seen.append(pongs.unconfirmed)
        pongs.take()
    seen.append(pongs.unconfirmed)
    assert seen == [None, 1, 1, 2, None]
