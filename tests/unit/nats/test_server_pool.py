import itertools
from itertools import islice

import pytest

from sanic_nats_bridge.nats.server_pool import MAX_DISCOVERED, Server, ServerPool

MEMBERS = ["nats://10.0.0.1:4222", "nats://10.0.0.2:4223"]


def first(pool: ServerPool, count: int) -> list[Server]:
    return [server for server, _ in islice(pool.attempts(), count)]


def test_every_configured_server_is_tried_before_any_is_retried() -> None:
    pool = ServerPool(["nats://a:1", "b:2", "tls://c"])
    tried = [server.url for server in first(pool, 6)]
    assert set(tried[:3]) == {"nats://a:1", "nats://b:2", "tls://c"}
    assert tried[3:] == tried[:3]


def test_server_order_is_random() -> None:
    pool = ServerPool([f"nats://host:{port}" for port in range(1, 30)])
    assert len({first(pool, 1)[0].url for _ in range(50)}) > 1


def test_discovered_servers_are_tried_after_configured_ones() -> None:
    pool = ServerPool(["nats://seed:4222"])
    pool.discover(MEMBERS)
    servers = [server.url for server in first(pool, 3)]
    assert servers[0] == "nats://seed:4222"
    assert set(servers[1:]) == set(MEMBERS)


def test_discovered_server_that_is_configured_is_not_tried_twice() -> None:
    pool = ServerPool(["nats://user:secret@10.0.0.1:4222"])
    pool.discover([*MEMBERS, *MEMBERS])
    assert len({server.url for server in first(pool, 6)}) == 2


def test_discovered_server_gets_credentials_and_name_of_first_server() -> None:
    pool = ServerPool(["tls://user:secret@nats.example.com"])
    pool.discover(["tls://10.0.0.1:4222"])
    assert first(pool, 2) == [
        Server("tls://user:secret@nats.example.com"),
        Server("tls://user:secret@10.0.0.1:4222", "nats.example.com"),
    ]


@pytest.mark.parametrize(
    ("configured", "scheme", "has_tls"),
    [
        (["nats://seed"], "nats", False),
        (["tls://seed"], "tls", True),
        (["nats://seed", "tls://other"], "tls", True),
        (["ws://seed"], "ws", False),
        (["ws://seed", "wss://other"], "wss", True),
    ],
    ids=str,
)
def test_discovered_servers_use_tls_if_any_configured_server_does(
    configured: list[str], scheme: str, has_tls: bool
) -> None:
    pool = ServerPool(configured)
    # nats-py reports all of them with nats://, unless it is connected to one by tls://.
    pool.discover(MEMBERS)
    told_of = [server for server in pool.others("") if server.verified_name]
    assert {server.url for server in told_of} == {url.replace("nats:", f"{scheme}:") for url in MEMBERS}
    assert {server.has_tls for server in told_of} == {has_tls}
    assert [Server(url).has_tls for url in configured] == [url.startswith(("tls", "wss")) for url in configured]


def test_others_excludes_server_with_given_address() -> None:
    pool = ServerPool(["nats://user:secret@10.0.0.1:4222", "nats://seed"])
    pool.discover(MEMBERS)
    assert {server.address for server in pool.others("10.0.0.1:4222")} == {"10.0.0.2:4223", "seed:4222"}
    assert {server.address for server in pool.others("seed:4222")} == {"10.0.0.1:4222", "10.0.0.2:4223"}
    assert ServerPool(["nats://seed"]).others("seed:4222") == []


def test_invalid_discovered_address_is_skipped() -> None:
    pool = ServerPool(["nats://seed:4222"])
    pool.discover(["nats://a:port", "nats://a:99999", "nats://a:0", "nats://:4222", "nats://[::", *MEMBERS[:1]])
    assert {server.address for server in first(pool, 4)} == {"seed:4222", "10.0.0.1:4222"}


def test_address_contains_no_credentials() -> None:
    assert Server("nats://user:secret@host:1").address == "host:1"
    assert Server("nats://token@host").address == "host:4222"
    assert Server("nats://[::1]:4222").address == "[::1]:4222"


def test_backoff_is_short_within_round_and_grows_between_rounds() -> None:
    pauses = [pause for _, pause in islice(ServerPool(["a", "b"]).attempts(), 40)]
    within, between = pauses[0::2], pauses[1::2]
    assert set(within) == {0.05}
    assert all(0.05 <= pause <= 1 for pause in between)
    assert all(pause >= 0.5 for pause in between[6:])
    assert len(set(between[6:])) > 1


def test_backoff_is_short_again_after_connection_that_served() -> None:
    pool = ServerPool(["a"])
    assert max(pool.next_backoff() for _ in range(10)) > 0.5
    assert pool.backoff_after(3600, served=False) >= 0.5
    assert pool.backoff_after(1.0, served=True) <= 0.1
    assert pool.next_backoff() <= 0.2


def test_connections_that_served_are_at_least_one_second_apart() -> None:
    pool = ServerPool(["a"])
    assert all(seconds + pool.backoff_after(seconds, served=True) >= 1 for seconds in (0, 0.3, 0.999) for _ in range(5))


def test_server_that_is_up_half_of_the_time_is_never_missed() -> None:
    # It is up in each second with an odd number; an attempt fails or succeeds at once.
    for _ in range(200):
        pool, now, served = ServerPool(["a"]), 1.0, []
        while now < 30:
            attempts = pool.attempts()
            while int(now) % 2 == 0:
                now += next(attempts)[1]
            lasted = int(now) + 1 - now
            served.append(int(now))
            now += lasted
            now += pool.backoff_after(lasted, served=True)
        assert all(later - earlier == 2 for earlier, later in itertools.pairwise(served))


def test_server_that_left_cluster_is_dropped() -> None:
    pool = ServerPool(["nats://seed:4222"])
    pool.discover(MEMBERS)
    pool.discover(MEMBERS[:1])
    assert {server.url for server in first(pool, 6)} == {"nats://seed:4222", MEMBERS[0]}


def test_discovered_servers_are_limited() -> None:
    pool = ServerPool(["nats://seed:4222"])
    pool.discover(f"nats://10.0.{number // 256}.{number % 256}:4222" for number in range(10_000))
    assert len(pool.others("")) == 1 + MAX_DISCOVERED
    pool.discover(["nats://seed:4222"] * 1_000 + MEMBERS)
    assert {server.url for server in pool.others("seed:4222")} == set(MEMBERS)


def test_configured_servers_are_tried_between_many_discovered_ones() -> None:
    pool = ServerPool(["nats://a:1", "nats://b:2"])
    pool.discover(f"nats://10.0.0.{number}:4222" for number in range(25))
    tried = [server.address for server in first(pool, 31)]
    starts = [number for number, address in enumerate(tried) if address == tried[0]]
    assert starts == [0, 12, 24]
    assert all({tried[start], tried[start + 1]} == {"a:1", "b:2"} for start in starts)
    assert len(set(tried)) == 27


def test_round_without_discovered_servers_has_configured_ones_only() -> None:
    assert [server.address for server in first(ServerPool(["nats://a:1"]), 3)] == ["a:1"] * 3


def test_working_connection_is_replaced_after_a_second_at_least() -> None:
    pool = ServerPool(["a"])
    assert pool.wait_before_move(0.25) == 0.75
    assert pool.wait_before_move(3600) == 0
