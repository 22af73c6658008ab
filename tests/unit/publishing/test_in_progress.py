import random

import pytest

from sanic_nats_bridge.errors import InternalError, InvalidCommand
from sanic_nats_bridge.publishing.in_progress import InProgress


def made(max_of_session: int, max_of_worker: int) -> InProgress:
    return InProgress(
        max_of_session, max_of_worker, session_error=lambda: InvalidCommand("a"), error=lambda: InternalError("b")
    )


def taken(limit: InProgress, client: str, at_most: int = 1000) -> int:
    """Take as many as a client gets in sessions of its own, and return their number."""
    for number in range(at_most):
        try:
            limit.acquire(f"{client} {number}", client)
        except InternalError:
            return number
    return at_most


def test_session_is_limited_until_it_releases() -> None:
    limit = made(2, 100)
    for _ in range(2):
        limit.acquire("s", "ada")
    with pytest.raises(InvalidCommand):
        limit.acquire("s", "ada")
    limit.acquire("other", "ada")
    limit.release("s", "ada")
    limit.acquire("s", "ada")
    assert len(limit) == 3


def test_client_with_many_sessions_leaves_as_many_to_others_as_it_takes() -> None:
    limit = made(1, 1000)
    assert [taken(limit, client) for client in ("ada", "bob", "eve", "mallory")] == [500, 250, 125, 63]
    # The next client always has one, until there are nearly as many clients as places.
    assert taken(limit, "next", 1) == 1


@pytest.mark.parametrize(("max_of_worker", "expected"), [(1, [1, 0]), (2, [1, 1]), (3, [2, 1, 0])])
def test_small_worker_is_used_wholly(max_of_worker: int, expected: list[int]) -> None:
    limit = made(10, max_of_worker)
    assert [taken(limit, str(client)) for client in range(len(expected))] == expected


def test_all_that_was_taken_is_released() -> None:
    draw, limit = random.Random(1), made(3, 20)
    held: list[tuple[str, str]] = []
    for _ in range(2000):
        if held and draw.random() < 0.5:
            limit.release(*held.pop(draw.randrange(len(held))))
            continue
        client = draw.choice("abc")
        pair = f"{client}{draw.randrange(4)}", client
        try:
            limit.acquire(*pair)
        except (InvalidCommand, InternalError):
            continue
        held.append(pair)
        assert held.count(pair) <= 3
        assert len(limit) == len(held) <= 20
    for pair in held:
        limit.release(*pair)
    assert len(limit) == 0
    assert not limit._by_session
    assert not limit._by_client
