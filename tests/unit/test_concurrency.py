import contextlib

import pytest

from sanic_nats_bridge.concurrency import ConcurrencyLimit
from sanic_nats_bridge.errors import InternalError, InvalidCommand


def test_client_and_all_clients_are_limited_until_the_end_of_the_block() -> None:
    limit = ConcurrencyLimit(2, 3, client_error=lambda: InvalidCommand("a"), error=lambda: InternalError("b"))
    with contextlib.ExitStack() as stack:
        for client in ("ada", "ada", "bob"):
            stack.enter_context(limit.counting(client))
        with pytest.raises(InvalidCommand), limit.counting("ada"):
            pass
        with pytest.raises(InternalError), limit.counting("bob"):
            pass
        assert len(limit) == 3
    with pytest.raises(ZeroDivisionError), limit.counting("ada"):
        _ = 1 / limit._by_client["none"]
    assert len(limit) == 0
    assert not limit._by_client


def test_place_is_taken_until_it_is_released() -> None:
    limit = ConcurrencyLimit(1, 2, client_error=lambda: InvalidCommand("a"), error=lambda: InternalError("b"))
    limit.acquire("ada")
    with pytest.raises(InvalidCommand):
        limit.acquire("ada")
    limit.acquire("bob")
    with pytest.raises(InternalError):
        limit.acquire("eve")
    limit.release("ada")
    limit.acquire("eve")
    for client in ("bob", "eve"):
        limit.release(client)
    assert len(limit) == 0
    assert not limit._by_client
