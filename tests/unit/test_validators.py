import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sanic_nats_bridge import validators as checks

GOOD: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (checks.text, "x", "x"),
    (checks.flag, False, False),
    (checks.words, "a  b\tc", ("a", "b", "c")),
    (checks.words, '["a b", "c"]', ("a b", "c")),
    (checks.words, ["a b"], ("a b",)),
    (checks.words, ["a,b"], ("a,b",)),
    (checks.words, '["a,b", "c"]', ("a,b", "c")),
    (checks.open_patterns, ["a,b.>"], ("a,b.>",)),
    (checks.server_urls, ["nats://u:a,b@h"], ("nats://u:a,b@h",)),
    (checks.words, "", ()),
    (checks.server_urls, "127.0.0.1", ("127.0.0.1",)),
    (checks.server_urls, "nats://a tls://b:1", ("nats://a", "tls://b:1")),
    (checks.server_urls, ["wss://a/"], ("wss://a/",)),
    (checks.open_patterns, "> a.*", (">", "a.*")),
    (checks.open_patterns, ["$KV.bucket.>"], ("$KV.bucket.>",)),
    (checks.origins, "", ()),
    (checks.origins, "HTTPS://App.Example:443 null", ("https://app.example", "null")),
    (checks.origins, ["http://[0:0::1]:80", "app://-"], ("http://[::1]", "app://-")),
    (checks.header_names, ["traceparent"], ("traceparent",)),
    (checks.path_prefix, "", ""),
    (checks.path_prefix, "/a/b-c.d", "/a/b-c.d"),
    (checks.seconds(0), 0, 0.0),
    (checks.seconds(0.5), 86_400, 86_400.0),
    (checks.whole(1), 1, 1),
    (checks.readable_file, Path(__file__), __file__),
    (checks.reserved_prefix, "_INBOX.bridge", "_INBOX.bridge"),
]

BAD: list[tuple[Callable[[Any], Any], Any]] = [
    (checks.words, '["a"'),
    (checks.words, [1]),
    (checks.words, "a, b"),
    (checks.server_urls, []),
    (checks.server_urls, "nats://a ws://b"),
    (checks.server_urls, "http://a"),
    (checks.open_patterns, ["a..b"]),
    (checks.open_patterns, ["_NATSBRIDGE.>"]),
    (checks.origins, ["https://a", "*"]),
    (checks.origins, "https://*.example"),
    (checks.origins, "https://app.example/"),
    (checks.origins, "https://b\u00fccher.example"),
    (checks.origins, "app.example"),
    (checks.header_names, ["a:b"]),
    (checks.path_prefix, "/a/"),
    (checks.path_prefix, "/a/../b"),
    (checks.seconds(0.5), 0.4),
    (checks.seconds(0), 10**400),
    (checks.seconds(0), float("nan")),
    (checks.whole(1), True),
    (checks.whole(1), 0),
    (checks.reserved_prefix, "_a.>"),
    (checks.reserved_prefix, "inbox"),
    (checks.tls_context, True),
]


def label(value: Any) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("check", "value", "kept"), GOOD, ids=label)
def test_a_good_value_is_kept_in_one_shape(check: Callable[[Any], Any], value: Any, kept: Any) -> None:
    assert check(value) == kept


@pytest.mark.parametrize(("check", "value"), BAD, ids=label)
def test_a_wrong_value_is_refused_in_words_that_follow_the_settings_name(
    check: Callable[[Any], Any], value: Any
) -> None:
    with pytest.raises(ValueError, match=r"^(must|holds|is not) [^\n]+$"):
        check(value)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (checks.server_urls, "nats://a:4222,nats://u:hidden@b:4222"),
        (checks.open_patterns, "orders.new,orders.old"),
        (checks.shut_patterns, "orders.new, orders.old"),
        (checks.origins, "https://a.example,https://b.example"),
        (checks.header_names, "A, B"),
    ],
    ids=label,
)
def test_commas_between_words_are_refused_and_what_is_right_is_said(check: Callable[[Any], Any], value: str) -> None:
    said = "must be separated by blanks, not commas; a JSON list may hold words with commas"
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(value)


def test_a_value_that_may_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(ValueError, match=r"^must be the path of a file that is there$"):
        checks.readable_file("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY")


def test_a_tls_context_is_taken_as_it_is() -> None:
    context = ssl.create_default_context()
    assert checks.tls_context(context) is context
