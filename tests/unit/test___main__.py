import io
import sys
from pathlib import Path
from typing import Protocol

import pytest

from sanic_nats_bridge import __main__ as command_line

RULES = (
    '{"subscribe": ["users.{user}.>"], "deny": ["users.*.secret"], '
    '"variables": {"user": "7"}, "aliases": {"me.": "users.7."}}'
)
RECENT = "history: resume_window only (default: 120 s)"


Explained = tuple[int, str, str]
"""The exit status, and what was written to standard output and standard error."""


class Explain(Protocol):
    def __call__(self, *arguments: str, stdin: str = "") -> Explained: ...


@pytest.fixture
def explain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Explain:
    """Run the command within this process."""

    def run(*arguments: str, stdin: str = "") -> Explained:
        monkeypatch.setattr(sys, "argv", ["sanic_nats_bridge", "explain", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        return command_line.main(), *capsys.readouterr()

    return run


def test_each_pattern_is_explained_on_its_own_line(explain: Explain) -> None:
    lines = (
        f"allowed  me.orders (in NATS: users.7.orders): subscribe users.7.>; {RECENT}\n"
        f"allowed  me.> (in NATS: users.7.>): subscribe users.7.>; except users.*.secret; {RECENT}\n"
        "denied  users.7.orders: aliases: users.7.> has an alias\n"
        "denied  users.8.x: no pattern in subscribe includes users.8.x\n"
        "denied  me.secret (in NATS: users.7.secret): deny users.*.secret\n"
    )
    assert explain(RULES, "me.orders", "me.>", "users.7.orders", "users.8.x", "me.secret") == (1, lines, "")


def test_pattern_that_allows_history_is_printed(explain: Explain) -> None:
    rules = RULES.removesuffix("}") + ', "history": ["users.{user}.inbox", "users.{user}.orders.>"]}'
    lines = (
        "allowed  me.orders.> (in NATS: users.7.orders.>): subscribe users.7.>; history users.7.orders.>\n"
        f"allowed  me.> (in NATS: users.7.>): subscribe users.7.>; except users.*.secret; {RECENT}\n"
        "allowed  me.inbox (in NATS: users.7.inbox): subscribe users.7.>; history users.7.inbox\n"
        "denied  me.secret (in NATS: users.7.secret): deny users.*.secret\n"
    )
    assert explain(rules, "me.orders.>", "me.>", "me.inbox", "me.secret") == (1, lines, "")
    assert explain(rules, "me.orders.>", "me.>")[0] == 0


def test_every_direction_of_the_permissions_is_explained(explain: Explain) -> None:
    rules = RULES.removesuffix("}") + (
        ', "publish": ["rooms.*.say", "users.{user}.>"], "request": ["svc.>"], "follow": ["users.{user}.notice"]}'
    )
    lines = (
        "denied  rooms.7.say: no pattern in subscribe includes rooms.7.say\n"
        "  may publish: publish rooms.*.say\n"
        "  may not send requests: no pattern in request includes rooms.7.say\n"
        "  not followed from the start: no pattern in follow includes rooms.7.say\n"
        f"allowed  me.notice (in NATS: users.7.notice): subscribe users.7.>; {RECENT}\n"
        "  may publish: publish users.7.>\n"
        "  may not send requests: no pattern in request includes users.7.notice\n"
        "  followed from the start: follow users.7.notice\n"
        "denied  me.secret (in NATS: users.7.secret): deny users.*.secret\n"
        "  may not publish: deny users.*.secret\n"
        "  may not send requests: deny users.*.secret\n"
        "  not followed from the start: deny users.*.secret\n"
    )
    assert explain(rules, "rooms.7.say", "me.notice", "me.secret") == (1, lines, "")
    only = '{"subscribe": ["a"], "publish": ["a"]}'
    assert explain(only, "a") == (0, f"allowed  a: subscribe a; {RECENT}\n  may publish: publish a\n", "")


def test_permissions_are_read_from_file_or_standard_input(explain: Explain, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(RULES)
    expected = (0, f"allowed  me.x (in NATS: users.7.x): subscribe users.7.>; {RECENT}\n", "")
    assert explain(str(tmp_path / "rules.json"), "me.x") == expected
    assert explain("-", "me.x", stdin=RULES) == expected


@pytest.mark.parametrize("expires", ['"2126-01-01T00:00:00+00:00"', "4922899200"])
def test_expires_accepts_iso_string_and_timestamp(explain: Explain, expires: str) -> None:
    assert explain(f'{{"subscribe": [">"], "expires": {expires}}}', "a")[0] == 0


def test_expired_permissions_allow_nothing(explain: Explain) -> None:
    lines = (
        f"allowed  a: subscribe >; {RECENT}\n"
        "expired  the permissions: every command is answered with auth.expired\n"
    )  # fmt: skip
    assert explain('{"subscribe": [">"], "expires": 1767225600}', "a") == (1, lines, "")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ('{"subscribes": []}', "subscribes"),
        ('{"subscribe": "orders"}', "subscribe must be a list"),
        ('{"subscribe": ["a..b"]}', "valid patterns"),
        ('{"expires": "2026-01-01"}', "aware datetime"),
        ('{"expires": "soon"}', "soon"),
        ("{", "permissions must be JSON: Expecting"),
        ("[]", "JSON object"),
        (" [{}]", "JSON object"),
        ("no-such-file", "no-such-file"),
    ],
)
def test_invalid_permissions_are_reported_in_one_line(explain: Explain, written: str, said: str) -> None:
    status, out, err = explain(written, "a")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_invalid_standard_input_is_rejected(explain: Explain) -> None:
    assert explain("-", "a", stdin="null") == (2, "", "explain: permissions must be a JSON object, got NoneType\n")
    assert explain("-", "a", stdin="")[2].startswith("explain: permissions must be JSON: ")
