import logging
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.routes.log_redaction import QueryRedaction

PATHS = ["/nats/events", "/nats/stream"]

HIDDEN = {
    "/nats/events?a=SECRET": "/nats/events?[redacted]",
    "/nats/events/?SECRET": "/nats/events/?[redacted]",
    "GET http://h:1/nats/events?SECRET": "GET http://h:1/nats/events?[redacted]",
    " \U0001f50c ws://[::1]/nats/stream?SECRET": " \U0001f50c ws://[::1]/nats/stream?[redacted]",
    "'https://h/nats/events?a=SECRET'": "'https://h/nats/events?[redacted]'",
    "'https://h/nats/events?a='SECRET'": "'https://h/nats/events?[redacted]'",
    '"h" /nats/stream?a="SECRET" 1.1': '"h" /nats/stream?[redacted]" 1.1',
    "GET /nats/events?a\tSECRET\nSECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events?a?/nats/events?SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "/nats/events?SECRET\n": "/nats/events?[redacted]",
    "from http://h/nats/stream?SECRET to /nats/events?SECRET now":
        "from http://h/nats/stream?[redacted] to /nats/events?[redacted] now",
    # Below the prefix
    "GET /nats?SECRET 1.1": "GET /nats?[redacted] 1.1",
    "GET /nats/?SECRET 1.1": "GET /nats/?[redacted] 1.1",
    "GET /nats/event?SECRET 1.1": "GET /nats/event?[redacted] 1.1",
    "GET /nats/eventsx?SECRET 1.1": "GET /nats/eventsx?[redacted] 1.1",
    "GET /nats/health/live?SECRET 1.1": "GET /nats/health/live?[redacted] 1.1",
    # Other spellings
    "GET /nats//events?SECRET 1.1": "GET /nats//events?[redacted] 1.1",
    "GET //nats/events?SECRET 1.1": "GET //nats/events?[redacted] 1.1",
    "GET http://h//nats/events?SECRET": "GET http://h//nats/events?[redacted]",
    "GET http:///nats/events?SECRET": "GET http:///nats/events?[redacted]",
    "GET /nats/%65vents?SECRET 1.1": "GET /nats/%65vents?[redacted] 1.1",
    "GET /%6Eats/%65vents?SECRET 1.1": "GET /%6Eats/%65vents?[redacted] 1.1",
    "GET /%6eats%2Fevents?SECRET 1.1": "GET /%6eats%2Fevents?[redacted] 1.1",
    "GET /%256eats%252fevents?SECRET 1.1": "GET /%256eats%252fevents?[redacted] 1.1",
    "GET /nats/events%FF?SECRET 1.1": "GET /nats/events%FF?[redacted] 1.1",
    "GET /nats/events;?SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events;v=1?SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events;SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats;a=SECRET/events?SECRET 1.1": "GET /nats?[redacted] 1.1",
    "GET /nats/events%3BSECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events%3Ftoken=SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events%253ftoken=SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events#SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/events#?SECRET 1.1": "GET /nats/events?[redacted] 1.1",
    "GET /nats/./events?SECRET 1.1": "GET /nats/./events?[redacted] 1.1",
    "GET /./nats/events?SECRET 1.1": "GET /./nats/events?[redacted] 1.1",
    "GET /nats/x/../events?SECRET 1.1": "GET /nats/x/../events?[redacted] 1.1",
    "GET /x/../nats/events?SECRET 1.1": "GET /x/../nats/events?[redacted] 1.1",
    "GET /x;y=1/%2E%2e/nats/events?SECRET 1.1": "GET /x?[redacted] 1.1",
    "GET http://h/x/../nats/events?SECRET": "GET http://h/x/../nats/events?[redacted]",
    "GET /../nats/events?SECRET 1.1": "GET /../nats/events?[redacted] 1.1",
    "GET /x/../../nats/events?SECRET 1.1": "GET /x/../../nats/events?[redacted] 1.1",
    "GET /x//../nats/events?SECRET 1.1": "GET /x//../nats/events?[redacted] 1.1",
    "GET //../nats/events?SECRET 1.1": "GET //../nats/events?[redacted] 1.1",
    "GET /..;a/nats/events?SECRET 1.1": "GET /..?[redacted] 1.1",
    "GET http://h/../nats/events?SECRET": "GET http://h/../nats/events?[redacted]",
    "GET http://h/%2e%2E/nats/events?SECRET": "GET http://h/%2e%2E/nats/events?[redacted]",
    "'http://h/x/../../nats/events?SECRET'": "'http://h/x/../../nats/events?[redacted]'",
    "Bad URL: ../nats/events?SECRET": "Bad URL: ../nats/events?[redacted]",
    "invalid url b'../nats/events?SECRET'": "invalid url b'../nats/events?[redacted]'",
    "Bad URL: x/../nats/events?SECRET": "Bad URL: x/../nats/events?[redacted]",
    "GET \\nats\\events?SECRET 1.1": "GET \\nats\\events?[redacted] 1.1",
    "GET /nats/a\tb?SECRET 1.1": "GET /nats/a\tb?[redacted] 1.1",
    'GET /nats/a"b?SECRET 1.1': 'GET /nats/a"b?[redacted] 1.1',
    '"GET /nats/a\'b?SECRET"': '"GET /nats/a\'b?[redacted]"',
    "Bad URL: nats/events?SECRET": "Bad URL: nats/events?[redacted]",
    "http%3A//h/nats/events?SECRET": "http%3A//h/nats/events?[redacted]",
    # With several values of X-Forwarded-Host
    "GET http://a.example, b.example/nats/events?SECRET": "GET http://a.example, b.example/nats/events?[redacted]",
    "'http://a, b:80//x/../nats/events?SECRET'": "'http://a, b:80//x/../nats/events?[redacted]'",
    "Bad URL: h:80/nats/events?SECRET": "Bad URL: h:80/nats/events?[redacted]",
    # With punctuation around, as in messages of errors
    "no ticket (http://h/nats/events?SECRET) given": "no ticket (http://h/nats/events?[redacted] given",
    "url=http://h/nats/events?SECRET status=401": "url=http://h/nats/events?[redacted] status=401",
    "<URL:'/nats/events?SECRET'>": "<URL:'/nats/events?[redacted]",
    "[/nats/events?SECRET]": "[/nats/events?[redacted]",
    "GET->http://h/nats/events?SECRET": "GET->http://h/nats/events?[redacted]",
    '{"shop":"/shop?a=1","nats":"/nats/events?SECRET"}': '{"shop":"/shop?a=1","nats":"/nats/events?[redacted]',
}  # fmt: skip

SHOWN = [
    "/nats/events", "/nats/events?", "/nats/events;", "'/nats/events?'", "/shop?a=1", "/shop/nats/events?a=1",
    "http://h/shop/nats/events?a=1", "/natsx?a=1", "/nats-admin/events?a=1", "/nats.js?a=1", "/NATS/events?a=1",
    "/?next=/nats/events", "/shop?next=/nats/events", "/shop?a=1#/nats/events", "/shop;a=1/x?b=2", "/shop/../x?a=%2F",
    "nats://nats?a=1", "nats://nats:4222", "", "100 % /nats/stream", "why? /nats/events", "a;b?c#d%3Fe",
    "/nats%20/events?a=1", "/shop?next=(/nats/events?a=1", "/shop/(/nats/events?a=1", "GET http://h/x=/nats/events?a=1",
    "http://nats/../shop?a=1", "http://a, b.example/shop/nats/events?a=1", "xnats/shop?a=1", "http://h/shop/../..?a=1", "(http://nats?a=1)",
]  # fmt: skip


def redacted(text: str, prefix: str = "/nats") -> str:
    record = logging.LogRecord("x", 10, "x", 1, "%s", (text,), None)
    assert QueryRedaction(prefix, PATHS).filter(record)
    return record.getMessage()


@pytest.mark.parametrize("text", HIDDEN)
def test_query_of_bridge_route_is_redacted(text: str) -> None:
    redaction = QueryRedaction("/nats", PATHS)
    for record in (
        logging.LogRecord("x", 10, "x", 1, text, None, None),
        logging.LogRecord("x", 10, "x", 1, "%s", (text,), None),
        logging.LogRecord("x", 10, "x", 1, "%(R)s", ({"R": text},), None),
        logging.LogRecord("x", 10, "x", 1, "%s", (ValueError(text),), None),
    ):
        assert redaction.filter(record)
        assert record.getMessage() == HIDDEN[text]


@pytest.mark.parametrize("text", SHOWN)
def test_other_log_text_is_unchanged(text: str) -> None:
    record = logging.LogRecord("x", 10, "x", 1, "%s %d", (text, 5), None)
    vars(record)["request"] = f"GET {text}"
    assert QueryRedaction("/nats", PATHS).filter(record)
    assert (record.getMessage(), record.args, vars(record)["request"]) == (f"{text} 5", (text, 5), f"GET {text}")


def test_bytes_are_redacted() -> None:
    record = logging.LogRecord("x", 10, "x", 1, "%s %s", (b"/nats/events?SECRET", b"/shop?a=1"), None)
    QueryRedaction("/nats", PATHS).filter(record)
    assert record.getMessage() == "b'/nats/events?[redacted]' b'/shop?a=1'"


def test_extra_fields_of_record_are_redacted() -> None:
    record = logging.LogRecord("x", 10, "x", 1, "", None, None)
    vars(record).update(request="GET http://h/nats/events?SECRET", url="/nats/stream?SECRET", status=200)
    QueryRedaction("/nats", PATHS).filter(record)
    assert "SECRET" not in repr(vars(record))
    assert vars(record)["status"] == 200


def error_with_context(text: str) -> BaseException:
    try:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise ValueError(f"Bad URL: {text}") from error
    except ValueError as error:
        return error


def test_traceback_with_query_is_redacted_and_others_are_kept() -> None:
    formatter = logging.Formatter()
    error = error_with_context("/nats/events?SECRET")
    record = logging.LogRecord("x", 10, "x", 1, "failed", None, (type(error), error, error.__traceback__))
    QueryRedaction("/nats", PATHS).filter(record)
    text = formatter.format(record)
    assert "SECRET" not in text
    assert text.startswith("failed\nTraceback (most recent call last):")
    assert "ValueError: Bad URL: /nats/events?[redacted]" in text
    assert record.exc_info is None
    error = error_with_context("/shop?a=1")
    record = logging.LogRecord("x", 10, "x", 1, "failed", None, (type(error), error, error.__traceback__))
    QueryRedaction("/nats", PATHS).filter(record)
    assert record.exc_info is not None
    assert "ValueError: Bad URL: /shop?a=1" in formatter.format(record)


def test_query_field_is_redacted_without_changing_original_dict() -> None:
    for path in ("/nats/events", "/nats//events", "/nats/%65vents/", "/nats/x"):
        fields = {"U": path, "q": "a=SECRET", "s": 200}
        record = logging.LogRecord("x", 10, "x", 1, "%(U)s %(q)s %(s)d", (fields,), None)
        QueryRedaction("/nats", PATHS).filter(record)
        assert record.getMessage() == f"{path} [redacted] 200"
        assert fields["q"] == "a=SECRET"
    other = logging.LogRecord("x", 10, "x", 1, "%(U)s %(q)s", ({"U": "/shop", "q": "a=1"},), None)
    QueryRedaction("/nats", PATHS).filter(other)
    assert other.getMessage() == "/shop a=1"


def test_bridge_without_prefix_redacts_its_own_routes_only() -> None:
    redaction = QueryRedaction("", ["/events", "/stream"])
    hidden = ["/events?SECRET", "//events?SECRET", "/%65vents/?SECRET", "/events;?SECRET", "/x/../stream?SECRET"]
    shown = ["/events/list?a=1", "/eventsx?a=1", "/shop/events?a=1", "/?a=1", "/shop?a=1"]
    for path in hidden + shown:
        for text in (path, f"GET http://h{path} 1.1"):
            record = logging.LogRecord("x", 10, "x", 1, "%s", (text,), None)
            redaction.filter(record)
            assert (record.getMessage() == text) is (path in shown), text


def test_prefix_may_have_several_segments() -> None:
    redaction = QueryRedaction("/api/v1.0/nats", PATHS)
    for text, hidden in (
        ("/api/v1.0/nats/events?SECRET", True),
        ("/api//v1%2E0/./nats/events?SECRET", True),
        ("/api/v1x0/nats/events?a=1", False),
        ("/api/v1.0/shop?a=1", False),
        ("/nats/events?a=1", False),
    ):
        record = logging.LogRecord("x", 10, "x", 1, "%s", (text,), None)
        redaction.filter(record)
        assert (record.getMessage() != text) is hidden, text


def encoded(character: str, style: int) -> str:
    code = f"%{ord(character):02X}"
    return (character, code, code.lower(), quote(code))[style]


SLASHES = st.sampled_from(["/", "//", "/./", "%2F", "%2f/", "/x/../", "/x//../", "/x;y/%2e%2E/", ";v=1/", "///"])
ABOVE_ROOT = st.sampled_from(["", "/..", "/../..", "/x/../..", "/..;y", "//%2e."])


@given(
    st.lists(st.integers(0, 3), min_size=10, max_size=10),
    st.tuples(SLASHES, SLASHES),
    st.sampled_from(["", "/", "/x", ";", ";v=1", "%2F..", "/../x"]),
    st.sampled_from(["?", "%3F", "#", "?a=1&", ";?", ";", "#?"]),
    st.sampled_from(
        [
            "",
            "http://h",
            "https://[::1]:1",
            "GET http://h",
            "'",
            '"GET ',
            "x\t",
            "/shop?a=1 ",
            "u=http://h",
            "http://a, b",
        ]
    ),
    ABOVE_ROOT,
)
def test_no_spelling_of_a_bridge_path_shows_its_query(
    styles: list[int], slashes: tuple[str, str], end: str, start: str, before: str, above: str
) -> None:
    letters = [encoded(letter, style) for letter, style in zip("natsevents", styles, strict=True)]
    # What precedes the first slash would be a segment of its own.
    first = slashes[0].removeprefix(";v=1")
    path = above + first + "".join(letters[:4]) + slashes[1] + "".join(letters[4:])
    text = redacted(f"{before}{path}{end}{start}token=SECRET 200")
    assert "SECRET" not in text
    assert text.startswith(before)
    assert text.endswith("?[redacted] 200")


@given(st.text("/nats%2e;?#'\"\\ .:x\n", max_size=40))
def test_redaction_never_fails_and_is_stable(text: str) -> None:
    once = redacted(text)
    assert redacted(once) == once


@pytest.mark.parametrize("unit", ["'", "/nats", "/..", ";", "?", "%25", "/a;", "'/n", "http://", "x:"])
def test_hostile_target_takes_linear_work(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the characters that are examined, because a busy machine makes any test slow."""
    examined = 0
    is_own: Any = QueryRedaction._is_own

    def counting(self: QueryRedaction, text: str, **options: bool) -> bool:
        nonlocal examined
        examined += len(text)
        own: bool = is_own(self, text, **options)
        return own

    monkeypatch.setattr(QueryRedaction, "_is_own", counting)
    target = unit * (8192 // len(unit))
    redacted(f"GET /shop{target}?a=1")
    redacted(f"GET /shop?{target}")
    assert examined <= 3 * 8192
