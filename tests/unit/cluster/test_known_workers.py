from collections.abc import Callable

from sanic_nats_bridge.cluster.known_workers import KnownWorkers
from sanic_nats_bridge.protocol.session_ids import new_worker_id
from tests.support.growth import assert_linear


def settled() -> KnownWorkers:
    """Return the known workers of a worker that has been connected for long, and has asked about many unknown ones."""
    known = KnownWorkers()
    known.connected(0)
    for _ in range(1000):
        known.may_exist(new_worker_id(), 100)
    return known


def test_any_worker_may_exist_until_the_others_could_announce_themselves() -> None:
    known = KnownWorkers()
    known.connected(100)
    assert all(known.may_exist(new_worker_id(), 101) for _ in range(1000))
    known = settled()
    assert not known.may_exist(new_worker_id(), 100)
    known.connected(100)
    assert all(known.may_exist(new_worker_id(), 101) for _ in range(1000))


def test_few_unknown_workers_per_second_may_exist() -> None:
    known = KnownWorkers()
    known.connected(0)
    found = [sum(known.may_exist(new_worker_id(), second) for _ in range(1000)) for second in range(100, 110)]
    assert found == [20] * 10


def test_known_worker_may_exist_for_ten_minutes_after_its_announcement() -> None:
    known = settled()
    known.heard("a", 100)
    assert all(known.may_exist("a", 100) for _ in range(1000))
    known.heard("b", 699)
    assert known.may_exist("a", 699)
    known.heard("a", 699)
    known.heard("b", 1299)
    assert known.may_exist("a", 1299)
    known.heard("b", 1300)
    assert [*known._heard] == ["b"]


def test_worker_that_has_announced_its_end_never_exists_again() -> None:
    known = settled()
    known.heard("a", 100)
    known.ended("a")
    assert not known.may_exist("a", 100)
    known.heard("a", 101)
    known.connected(101)
    assert not known.may_exist("a", 101)


def test_memory_is_bounded_and_any_worker_may_exist_after_an_overflow() -> None:
    known = settled()
    known.heard("a", 100)
    for number in range(10_000):
        known.heard(str(number), 100)
        known.ended(f"ended {number}")
        known.ended(f"gone {number}")
    assert len(known._heard) == len(known._ended) == 10_000
    assert all(known.may_exist("a", 101) for _ in range(1000))


def test_time_of_an_announcement_does_not_grow_with_the_workers() -> None:
    def make(count: int) -> Callable[[], None]:
        known = KnownWorkers()

        def announce() -> None:
            for _ in range(5):
                for number in range(count):
                    known.heard(str(number), 100)
            for number in range(count):
                known.ended(str(number))

        return announce

    assert_linear(make, 4_000)
