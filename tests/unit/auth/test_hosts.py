import pytest

from sanic_nats_bridge.auth.hosts import LOCAL_HOSTS, HostPolicy, parse_allowed_host

LISTED = ["app.example", "*.Shop.example", "[2001:db8::1]", "10.0.0.0/8", "münchen.example".encode("idna").decode()]
ALLOWED = [
    "app.example",
    "APP.Example",
    "app.example.",
    "app.example:8000",
    "app.example.:8000",
    "app.example:",
    "eu.shop.example",
    "a.b.shop.example:1",
    "[2001:db8::1]",
    "[2001:0DB8:0:0::1]:443",
    "10.1.2.3",
    "10.1.2.3:80",
    "xn--mnchen-3ya.example",
]
FORBIDDEN = [
    "",
    "evil.example",
    "shop.example",
    "notshop.example",
    "evilshop.example",
    "app.example.evil.example",
    "eu.app.example",
    "app.example..",
    ".app.example",
    "app.example:8000:1",
    "app.example:x",
    "user@app.example",
    "app.example,evil.example",
    "app.example evil.example",
    "app.example/",
    "münchen.example",
    "[2001:db8::2]",
    "2001:db8::1",
    "[2001:db8::1",
    "[app.example]",
    "11.1.2.3",
    "10.1.2.3.evil.example",
    "localhost",
    "127.0.0.1",
    "a" * 5_000 + ".shop.example",
]
LOCAL = [
    "localhost",
    "LOCALHOST:5001",
    "localhost.",
    "app.localhost",
    "127.0.0.1:80",
    "192.0.2.1",
    "[::1]",
    "[fe80::1]:1",
]


@pytest.mark.parametrize("host", ALLOWED)
def test_listed_host_is_allowed_with_any_port_and_case(host: str) -> None:
    assert HostPolicy(LISTED).allows(host)


@pytest.mark.parametrize("host", FORBIDDEN, ids=lambda host: host[:40])
def test_other_host_is_not_allowed(host: str) -> None:
    assert not HostPolicy(LISTED).allows(host)


@pytest.mark.parametrize("host", [*ALLOWED, *FORBIDDEN], ids=lambda host: host[:40])
def test_any_host_is_allowed_without_a_list(host: str) -> None:
    assert HostPolicy(None).allows(host)


@pytest.mark.parametrize("name", ["app.example", "App.example:8000", "app.example."])
def test_name_of_server_is_allowed_in_addition_to_list(name: str) -> None:
    policy = HostPolicy(["other.example"])
    assert policy.allows("app.example:80", name)
    assert policy.allows("other.example", name)
    assert not policy.allows("evil.example", name)
    assert not policy.allows("localhost", name)


@pytest.mark.parametrize("policy", [HostPolicy(None), HostPolicy(LOCAL_HOSTS)], ids=["no list", "listed"])
def test_only_local_hosts_are_allowed_if_only_known_ones_are(policy: HostPolicy) -> None:
    for host in LOCAL:
        assert policy.allows(host, only_known=True), host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", ""):
        assert not policy.allows(host, only_known=True), host


def test_server_name_without_list_leaves_local_hosts() -> None:
    policy = HostPolicy(None)
    assert all(policy.allows(host, "app.example") for host in (*LOCAL, "app.example"))
    assert not policy.allows("evil.example", "app.example")


def test_known_hosts_are_local_ones_and_listed_ones() -> None:
    policy = HostPolicy(["app.example"])
    assert all(policy.allows(host, only_known=True) for host in (*LOCAL, "app.example"))
    assert not policy.allows("evil.example", only_known=True)


def test_probe_may_name_no_host_or_local_one() -> None:
    policy = HostPolicy(["app.example"])
    assert all(policy.allows(host, local=True) for host in (*LOCAL, "app.example", ""))
    assert not policy.allows("evil.example", local=True)


@pytest.mark.parametrize("text", ["", "*", "*.", "a.*", "a:80", "https://a", "ä", "10.0.0.0/99", "[::1", ".a", "a b"])
def test_wrong_element_of_list_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not a host"):
        parse_allowed_host(text)
