from typing import Any

import pytest

from sanic_nats_bridge.nats.parser import MalformedLineError
from sanic_nats_bridge.nats.server_info import decode_info, domain_of, max_payload_of, usable_addresses
from sanic_nats_bridge.nats.server_pool import MAX_DISCOVERED


def test_info_is_an_object() -> None:
    assert decode_info(b'{"max_payload":1}') == {"max_payload": 1}


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"1", b"null", b"\xff", b'"x"', b"[" * 100_000, b"9" * 10_000],
    ids=lambda document: ascii(document[:9]),
)
def test_other_info_is_malformed(document: bytes) -> None:
    with pytest.raises(MalformedLineError, match="invalid INFO line"):
        decode_info(document)


@pytest.mark.parametrize("value", [0, -1, True, "1", None, 1.5, float("inf"), [], {}])
def test_nonsense_in_max_payload_counts_as_default(value: Any) -> None:
    assert max_payload_of({"max_payload": value}) == max_payload_of({}) == 1_048_576


def test_max_payload_is_that_of_server() -> None:
    assert max_payload_of({"max_payload": 8_388_608}) == 8_388_608


@pytest.mark.parametrize("value", [None, 1, True, [], {}])
def test_domain_is_a_string(value: Any) -> None:
    assert domain_of({"domain": value}) == domain_of({}) == ""
    assert domain_of({"domain": "hub"}) == "hub"


def test_only_usable_addresses_are_announced() -> None:
    addresses = ["10.0.0.1:4222", 1, None, "", "a:port", "[::1]:4222", "10.0.0.1:4222", {}]
    assert usable_addresses(addresses) == ["10.0.0.1:4222", "[::1]:4222"]
    assert usable_addresses("10.0.0.1:4222") == usable_addresses({"a": 1}) == usable_addresses([]) == []


def test_number_of_addresses_is_limited() -> None:
    assert len(usable_addresses([f"10.0.0.1:{port}" for port in range(1, 60_000)])) == MAX_DISCOVERED
