import pytest

from sanic_nats_bridge.auth.origins import Caller, Origin, OriginPolicy, allowable, parse_origin

ALLOWED = ("https://app.example", "http://[::1]:8000", "capacitor://localhost", "null")

# Origin, Host: the page is the app's own, as far as is known of the scheme.
OWN = [
    ("https://shop.example", "shop.example"),
    ("http://shop.example", "shop.example"),
    ("https://shop.example", "shop.example:443"),
    ("https://shop.example:443", "shop.example"),
    ("http://shop.example:80", "shop.example:80"),
    ("https://shop.example:8443", "shop.example:8443"),
    ("HTTPS://Shop.EXAMPLE", "sHOP.example"),
    ("https://shop.example ", "shop.example"),
    ("https://shop.example", "shop.example:"),
    ("https://shop.example.", "shop.example."),
    ("https://xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("http://127.0.0.1:5001", "127.0.0.1:5001"),
    ("http://[::1]:5001", "[::1]:5001"),
    ("http://[::1]", "[0:0:0:0:0:0:0:1]:80"),
    ("http://my_host", "my_host"),
]

FOREIGN = [
    ("https://evil.example", "shop.example"),
    ("null", "shop.example"),
    ("null", "null"),
    ("", "shop.example"),
    ("https://", ""),
    ("https://shop.example", ""),
    ("https://shop.example.evil", "shop.example"),
    ("https://evil-shop.example", "shop.example"),
    ("https://www.shop.example", "shop.example"),
    ("https://example", "shop.example"),
    ("https://shop.example", "shop.example:80"),
    ("https://shop.example", "shop.example:8443"),
    ("https://shop.example:8443", "shop.example"),
    ("http://shop.example:443", "shop.example"),
    ("https://shop.example.", "shop.example"),
    ("https://shop.example", "shop.example."),
    ("https://shop.example:0", "shop.example"),
    ("https://shop.example:99999", "shop.example:99999"),
    ("https://shop.example:", "shop.example"),
    ("https://shop.example/", "shop.example"),
    ("https://shop.example?", "shop.example"),
    ("https://shop.example#", "shop.example"),
    ("https://shop.example@evil.example", "shop.example"),
    ("https://evil.example@shop.example", "shop.example"),
    ("https://user:word@shop.example", "shop.example"),
    ("https://shop.example\\@evil.example", "shop.example"),
    ("https://shop.example, https://shop.example", "shop.example"),
    ("https://shop.example https://evil.example", "shop.example"),
    ("https://shop.example\n", "shop.example"),
    ("https://shop%2eexample", "shop.example"),
    ("https://shop.\u0435xample", "shop.example"),
    ("https://shop\uff0eexample", "shop.example"),
    ("https://b\u00fccher.example", "b\u00fccher.example"),
    ("https://shop.example:\u0664\u0664\u0663", "shop.example"),
    ("//shop.example", "shop.example"),
    ("shop.example", "shop.example"),
    ("ws://shop.example", "shop.example"),
    ("wss://shop.example", "shop.example"),
    ("evil://shop.example", "shop.example"),
    ("chrome-extension://shop.example", "shop.example"),
    ("https://[::1", "[::1"),
    ("https://[::1::2]", "[::1::2]"),
    ("https://[::1]", "::1"),
    ("https://::1", "::1"),
    ("https://shop.example", "shop.example, evil.example"),
    ("https://shop.example", "evil.example@shop.example"),
    ("https://*", "*"),
]


def caller(
    *origins: str, host: str = "shop.example", sites: tuple[str, ...] = (), port: int | None = None,
    scheme: str | None = None,
) -> Caller:  # fmt: skip
    return Caller(origins, sites, host, port, scheme)


@pytest.mark.parametrize(("origin", "host"), OWN)
def test_own_origin_is_allowed(origin: str, host: str) -> None:
    assert OriginPolicy([]).allows(caller(origin, host=host))


@pytest.mark.parametrize(("origin", "host"), FOREIGN)
def test_foreign_origin_is_rejected(origin: str, host: str) -> None:
    for scheme in (None, "http", "https"):
        assert not OriginPolicy(["https://app.example"]).allows(caller(origin, host=host, scheme=scheme))


@pytest.mark.parametrize(
    "origin",
    ["https://app.example", "https://app.example:443", "HTTPS://APP.example", "http://[0::1]:8000",
     "capacitor://localhost", "null"],
)  # fmt: skip
def test_listed_origin_is_allowed_for_every_host(origin: str) -> None:
    for scheme in (None, "http", "https"):
        assert OriginPolicy(ALLOWED).allows(caller(origin, host="any", scheme=scheme, sites=("cross-site",)))
    assert OriginPolicy(ALLOWED).listed([origin]) == origin


# As web views and extensions send them
OTHER_SCHEMES = [
    "file://",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "http://tauri.localhost",
    "app://.",
    "app://-",
    "app://obsidian.md",
    "app://com.example.app:8080",
    "qrc://",
    "myapp://",
    "my-app+x.y://a_b~c!d$e%20f",
    "app://a,b;c='d'",
    "app://[::1]:1",
    "chrome-extension://nkbihfbeogaeaoehlefnkodbefgpgknn",
    "moz-extension://2fa1f2b6-4b0e-4c5b-9d3e-0a1b2c3d4e5f",
    "safari-web-extension://E3449EA7-EC22-4CD5-9EDA-0D6FD2E16F32",
    "vscode-webview://0a1b2c3d4e5f6g7h8i9j0k",
    "ms-appx-web://app_x",
    "null",
]


@pytest.mark.parametrize("origin", OTHER_SCHEMES)
def test_origin_of_any_scheme_can_be_listed_exactly_as_it_is_sent(origin: str) -> None:
    for allowed in (origin, str(parse_origin(origin))):
        rule = OriginPolicy([allowed])
        assert rule.allows(caller(origin, sites=("cross-site",)))
        assert rule.listed([origin]) == origin
        assert not any(rule.allows(caller(other)) for other in OTHER_SCHEMES if other != origin)
    assert allowable([origin]) == origin
    assert not OriginPolicy([]).allows(caller(origin))


@pytest.mark.parametrize(
    "text",
    ["file:///", "file:///android_asset/www", "capacitor://localhost/", "app://a b", "app://a?b", "app://a#b",
     "app://a@b", "app://a\\b", "app://a:", "app://a:b", "app://*", "://a", "app:a", "app:", "1app://a",
     "app://[a]", "app://größe", "http://", "https://", "HTTP://", "wss://", "ws://", "ftp://", "http://a%b",
     "http://a!b", "http:///"],
)  # fmt: skip
def test_text_that_no_browser_sends_is_not_an_origin(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - an address has messages of its own
        parse_origin(text)
    assert allowable([text]) is None


def test_only_a_single_origin_header_can_be_named_by_the_setting() -> None:
    assert allowable([" \thttps://app.example "]) == "https://app.example"
    assert allowable([]) is None
    assert allowable(["https://app.example", "https://app.example"]) is None
    assert allowable([""]) is None


@pytest.mark.parametrize(
    "origin", ["http://app.example", "https://app.example:8443", "NULL", "capacitor://localhost:1"]
)
def test_listed_origin_must_match_scheme_host_and_port(origin: str) -> None:
    assert not OriginPolicy(ALLOWED).allows(caller(origin))
    assert OriginPolicy(ALLOWED).listed([origin]) is None


def test_multiple_origin_headers_are_rejected() -> None:
    rule = OriginPolicy(ALLOWED)
    assert not rule.allows(caller("https://app.example", "https://app.example"))
    assert not rule.allows(caller("https://shop.example", "https://shop.example"))
    assert rule.listed(["https://app.example"] * 2) is None
    assert rule.listed([]) is None


@pytest.mark.parametrize(
    ("origin", "scheme", "admitted"),
    [("https://shop.example", "https", True), ("http://shop.example", "https", False),
     ("http://shop.example", "http", True), ("https://shop.example", "http", False)],
)  # fmt: skip
def test_scheme_must_match_if_known(origin: str, scheme: str, admitted: bool) -> None:
    assert OriginPolicy([]).allows(caller(origin, scheme=scheme)) is admitted


def test_forwarded_port_overrides_port_of_host_header() -> None:
    rule = OriginPolicy([])
    assert rule.allows(caller("https://shop.example:8443", port=8443))
    assert rule.allows(caller("https://shop.example", host="shop.example:8000", port=443))
    assert not rule.allows(caller("https://shop.example", port=8443))


@pytest.mark.parametrize(
    ("sites", "admitted"),
    [((), True), (("same-origin",), True), (("none",), True), (("cross-site",), False), (("same-site",), False),
     (("Cross-Site ",), False), (("none", "cross-site"), False), (("from-the-future",), True)],
)  # fmt: skip
def test_sec_fetch_site_decides_if_origin_header_is_missing(sites: tuple[str, ...], admitted: bool) -> None:
    assert OriginPolicy(ALLOWED).allows(caller(sites=sites)) is admitted


def test_own_origin_is_allowed_regardless_of_sec_fetch_site() -> None:
    assert OriginPolicy([]).allows(caller("https://shop.example", sites=("cross-site",)))


@pytest.mark.parametrize(
    ("text", "written"),
    [("https://a:443", "https://a"), ("http://a:443", "http://a:443"), ("http://A:080", "http://a"),
     ("app://-", "app://-"), ("app://a:80", "app://a:80"), ("http://[1::0:1]", "http://[1::1]"), ("null", "null")],
)  # fmt: skip
def test_origin_is_serialized_as_in_browsers(text: str, written: str) -> None:
    assert str(parse_origin(text)) == written
    assert parse_origin(written) == parse_origin(text)
    assert isinstance(parse_origin(text), Origin)
