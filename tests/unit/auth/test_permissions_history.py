"""Permissions for the past of a pattern."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.permissions import Grant, Permissions
from sanic_nats_bridge.errors import ForbiddenSubject
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_index import PatternIndex
from tests.support.growth import assert_linear
from tests.unit.auth.test_permissions import literal_prefixes, long_lists, requests

EVERYTHING = (">", "$KV.>", "_A.>")


def allows(history: Sequence[str], requested: str, **others: Any) -> bool:
    """Return True if the past of a pattern is allowed, and check that `explain` agrees."""
    permissions = Permissions(EVERYTHING, history=history, **others)
    allowed = permissions.allows_history(permissions.grant(requested))
    assert permissions.explain(requested).history == allowed
    return allowed


@pytest.mark.parametrize("requested", ["a", "a.b", "*", ">", "$KV.prefs.>", "_A.b"])
def test_no_history_is_allowed_by_default(requested: str) -> None:
    assert not allows([], requested)


@pytest.mark.parametrize(
    ("history", "requested"),
    [
        (["orders.42"], "orders.42"),
        (["orders.*"], "orders.*"),
        (["orders.>"], "orders.eu.>"),
        (["orders.>"], "orders.*.items"),
        (["a", "orders.*"], "orders.42"),
        ([">"], ">"),
        (["$KV.prefs.>"], "$KV.prefs.*"),
        (["_A.*"], "_A.b"),
    ],
)
def test_history_of_pattern_within_one_history_pattern_is_allowed(history: list[str], requested: str) -> None:
    assert allows(history, requested)


@pytest.mark.parametrize(
    ("history", "requested"),
    [
        (["orders.eu.>"], "orders.>"),
        (["orders.*"], "orders.>"),
        (["orders.a", "orders.b"], "orders.*"),
        (["orders"], "Orders"),
        ([">"], "$KV.prefs.>"),
        (["*.prefs.>"], "$KV.prefs.>"),
        (["*.>"], "_A.b"),
        (["$KV.prefs.>"], "$KV.>"),
    ],
)
def test_history_of_pattern_not_within_one_history_pattern_is_forbidden(history: list[str], requested: str) -> None:
    assert not allows(history, requested)


def test_history_allows_no_subscription() -> None:
    permissions = Permissions(["orders.*"], ["orders.secret"], history=[">", "$KV.>"])
    for pattern in ("news", "orders.eu.1", "orders.secret", "$KV.a", ">"):
        with pytest.raises(ForbiddenSubject):
            permissions.grant(pattern)
        explanation = permissions.explain(pattern)
        assert (explanation.allowed, explanation.history, explanation.history_rule) == (False, False, "")
    grant = permissions.grant("orders.*")
    assert permissions.allows_history(grant)
    assert grant.excluded == ("orders.secret",)


def test_variables_replace_their_placeholders_in_history() -> None:
    history = ["users.{user}.>", "{tenant}-{user}.x"]
    for requested, allowed in (("users.42.a", True), ("acme-42.x", True), ("users.43.a", False), ("users.*.a", False)):
        assert allows(history, requested, variables={"user": "42", "tenant": "acme"}) is allowed


@pytest.mark.parametrize("value", ["$KV", "_A"])
def test_variable_cannot_allow_history_of_reserved_subject(value: str) -> None:
    with pytest.raises(ValueError, match=r"^history has .* a variable must not make its first token reserved"):
        Permissions(history=["{user}.>"], variables={"user": value})


def test_history_is_judged_by_the_real_pattern_of_an_alias() -> None:
    aliases = {"me.": "users.7.", "prefs.": "$KV.prefs."}
    assert allows(["users.7.>"], "me.inbox", aliases=aliases)
    assert allows(["$KV.prefs.>"], "prefs.>", aliases=aliases)
    assert not allows(["me.>", "prefs.>"], "me.inbox", aliases=aliases)
    assert not allows([">", "me.>", "prefs.>"], "prefs.>", aliases=aliases)
    # It remains forbidden by its real name.
    assert not Permissions(EVERYTHING, history=["users.>"], aliases=aliases).explain("users.7.inbox").history


@given(
    long_lists,
    st.sampled_from(("1", "a", "ab")),
    st.dictionaries(literal_prefixes, literal_prefixes, max_size=4),
    st.lists(requests, min_size=1, max_size=20),
)
def test_history_is_that_of_one_comparison_after_another(
    history: list[str], value: str, aliases: dict[str, str], requested: list[str]
) -> None:
    history = [pattern for pattern in history if "_NATSBRIDGE" not in pattern.split(".")[0]]
    permissions = Permissions(EVERYTHING, history=history, variables={"v": value}, aliases=aliases)
    filled = [pattern.replace("{v}", value) for pattern in history]
    for pattern in filter(subjects.is_valid, requested):
        real = permissions.explain(pattern).real_pattern
        grant = Grant(pattern, real, "", "", ())  # type: ignore[arg-type]
        assert permissions.allows_history(grant) == any(subjects.covers(each, real) for each in filled), pattern


# Cost


@pytest.mark.parametrize(
    ("history", "requested"),
    [
        ("rooms.{}.>", "rooms.7.a.{}"),
        ("rooms.{}.>", "halls.{}"),
        ("*.rooms.{}.>", "*.rooms.*.{}"),
        ("rooms.{}.{{user}}", "rooms.*.{}.>"),
    ],
)
def test_question_takes_linear_time(history: str, requested: str) -> None:
    def make(size: int) -> Callable[[], object]:
        permissions = Permissions(
            EVERYTHING, history=[history.format(number) for number in range(size)], variables={"user": "7"}
        )
        permissions.explain("a")
        grants = [permissions.grant(requested.format(number)) for number in range(200)]
        return lambda: [permissions.allows_history(grant) for grant in grants]

    assert_linear(make, 2_000)


def test_history_is_indexed_once_and_only_for_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, ...]] = []
    build = PatternIndex._build

    def count(index: PatternIndex) -> None:
        built.append(index.patterns)
        build(index)

    monkeypatch.setattr(PatternIndex, "_build", count)
    history = [f"past.once.{number}.>" for number in range(300)]
    for identity in ("ada", "bob"):
        permissions = Permissions([">"], history=[*history, "own.{user}"], variables={"user": identity})
        grant = permissions.grant("past.once.1.x")
        assert built == []
    for _ in range(100):
        assert permissions.allows_history(grant)
    other = Permissions([">"], history=[*history, "own.{user}"], variables={"user": "eve"})
    assert other.allows_history(other.grant("own.eve"))
    assert built == [tuple(history)]


# Comparison and copies


def test_permissions_that_differ_in_history_are_different() -> None:
    one, other = Permissions(["a"], history=["a"]), Permissions(["a"])
    assert one != other
    assert one == Permissions(["a"], history=("a",))
    assert hash(one) == hash(Permissions(["a"], history=("a",))) != hash(other)
    assert "history=('a',)" in repr(one)


def test_history_can_be_replaced() -> None:
    permissions = Permissions(["a.{x}"], history=["a.{x}"], variables={"x": "1"})
    assert replace(permissions, identity="ada").allows_history(permissions.grant("a.1"))
    assert not replace(permissions, history=()).allows_history(permissions.grant("a.1"))
    assert replace(permissions, history=()) == Permissions(["a.{x}"], variables={"x": "1"})


def test_history_is_the_last_positional_argument() -> None:
    earlier = ["a"], ["b"], {"x": "1"}, {"me.": "c."}, False, "ada", 5.0
    assert Permissions(*earlier).history == ()
    assert Permissions(*earlier, ["a"]) == replace(Permissions(*earlier), history=["a"])


def test_history_is_immutable() -> None:
    history = ["a"]
    permissions = Permissions(["a", "b"], history=history)
    history.append("b")
    assert permissions.history == ("a",)
    assert not permissions.allows_history(permissions.grant("b"))
