import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sanic_nats_bridge import validators

GOOD: list[tuple[Callable[[Any], Any], Any, Any]] = [
    (validators.string, "x", "x"),
    (validators.boolean, False, False),
    (validators.strings, "a  b\tc", ("a", "b", "c")),
    (validators.strings, '["a b", "c"]', ("a b", "c")),
    (validators.strings, ["a b"], ("a b",)),
    (validators.strings, ["a,b"], ("a,b",)),
    (validators.strings, '["a,b", "c"]', ("a,b", "c")),
    (validators.allowed_patterns, ["a,b.>"], ("a,b.>",)),
    (validators.server_urls, ["nats://u:a,b@h"], ("nats://u:a,b@h",)),
    (validators.strings, "", ()),
    (validators.server_urls, "127.0.0.1", ("127.0.0.1",)),
    (validators.server_urls, "nats://a tls://b:1", ("nats://a", "tls://b:1")),
    (validators.server_urls, ["wss://a/"], ("wss://a/",)),
    (validators.allowed_patterns, "> a.*", (">", "a.*")),
    (validators.allowed_patterns, ["$KV.bucket.>"], ("$KV.bucket.>",)),
    (validators.origins, "", ()),
    (validators.origins, "HTTPS://App.Example:443 null", ("https://app.example", "null")),
    (validators.origins, ["http://[0:0::1]:80", "app://-"], ("http://[::1]", "app://-")),
    (validators.header_names, ["traceparent"], ("traceparent",)),
    (validators.path_prefix, "", ""),
    (validators.path_prefix, "/a/b-c.d", "/a/b-c.d"),
    (validators.seconds(0), 0, 0.0),
    (validators.seconds(1, or_zero=True), 0, 0.0),
    (validators.seconds(1, or_zero=True), 1, 1.0),
    (validators.seconds(0.5), 86_400, 86_400.0),
    (validators.integer(1), 1, 1),
    (validators.file_path, Path(__file__), __file__),
    (validators.reserved_prefix, "_INBOX.bridge", "_INBOX.bridge"),
]

BAD: list[tuple[Callable[[Any], Any], Any]] = [
    (validators.strings, '["a"'),
    (validators.strings, [1]),
    (validators.strings, "a, b"),
    (validators.server_urls, []),
    (validators.server_urls, "nats://a ws://b"),
    (validators.server_urls, "http://a"),
    (validators.allowed_patterns, ["a..b"]),
    (validators.allowed_patterns, ["_NATSBRIDGE.>"]),
    (validators.origins, ["https://a", "*"]),
    (validators.origins, "https://*.example"),
    (validators.origins, "https://app.example/"),
    (validators.origins, "https://b\u00fccher.example"),
    (validators.origins, "app.example"),
    (validators.header_names, ["a:b"]),
    (validators.path_prefix, "/a//"),
    (validators.path_prefix, "/a/../b"),
    (validators.seconds(0.5), 0.4),
    (validators.seconds(1, or_zero=True), 0.9),
    (validators.seconds(1, or_zero=True), False),
    (validators.seconds(0), 10**400),
    (validators.seconds(0), float("nan")),
    (validators.integer(1), True),
    (validators.integer(1), 0),
    (validators.reserved_prefix, "_a.>"),
    (validators.reserved_prefix, "assembler"),
    (validators.tls_context, True),
]


def label(value: Any) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("check", "value", "kept"), GOOD, ids=label)
def test_valid_value_is_normalized(check: Callable[[Any], Any], value: Any, kept: Any) -> None:
    assert check(value) == kept


@pytest.mark.parametrize(("check", "value"), BAD, ids=label)
def test_error_message_for_invalid_value_starts_with_verb(check: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(ValueError, match=r"^(must|holds|is not) [^\n]+$"):
        check(value)


@pytest.mark.parametrize(
    ("check", "value"),
    [
        (validators.server_urls, "nats://a:4222,nats://u:hidden@b:4222"),
        (validators.allowed_patterns, "orders.new,orders.old"),
        (validators.denied_patterns, "orders.new, orders.old"),
        (validators.origins, "https://a.example,https://b.example"),
        (validators.header_names, "A, B"),
    ],
    ids=label,
)
def test_comma_separated_values_are_rejected_with_hint(check: Callable[[Any], Any], value: str) -> None:
    said = "must be separated by spaces, not commas; use a JSON list for words that contain a comma"
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(value)


def test_error_message_does_not_repeat_possible_secret() -> None:
    with pytest.raises(ValueError, match=r"^must be the path of an existing file$"):
        validators.file_path("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY")


def test_tls_context_is_returned_unchanged() -> None:
    context = ssl.create_default_context()
    assert validators.tls_context(context) is context
