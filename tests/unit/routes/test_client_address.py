from types import SimpleNamespace
from typing import Any

import pytest

from sanic_nats_bridge.routes.client_address import client_address

ADDRESSES = [
    ("192.0.2.7", "192.0.2.7"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("2001:db8:0:1::7", "2001:db8:0:1::/64"),
    ("2001:db8:0:1:ffff::1", "2001:db8:0:1::/64"),
    ("[2001:db8:0:2::7]", "2001:db8:0:2::/64"),
    ("fe80::1%eth0", "fe80::/64"),
    ("/run/app.sock", "/run/app.sock"),
    ("_hidden", "_hidden"),
    ("", ""),
]


@pytest.mark.parametrize(("reported", "address"), ADDRESSES)
def test_addresses_of_one_ipv6_network_are_one_client(reported: str, address: str) -> None:
    request: Any = SimpleNamespace(client_ip=reported)
    assert client_address(request) == address
