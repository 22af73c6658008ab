import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.permissions import CONTROL_TOKEN, Explanation, Permissions
from sanic_nats_bridge.errors import ForbiddenSubject, InvalidSubject
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_index import PatternIndex
from tests.support.growth import assert_linear
from tests.support.linear_permissions import LinearPermissions


def allows(opened: Sequence[str], requested: str, **others: Any) -> bool:
    """Return True if the pattern is allowed, and check that `explain` agrees."""
    permissions = Permissions(opened, **others)
    try:
        grant = permissions.grant(requested)
    except ForbiddenSubject:
        assert not permissions.explain(requested).allowed
        return False
    assert permissions.explain(requested).allowed
    assert permissions.explain(requested).real_pattern == grant.real
    return True


@pytest.mark.parametrize("requested", ["a", "a.b", "*", ">", "$SYS.>", "_INBOX.>"])
def test_no_pattern_is_allowed_by_default(requested: str) -> None:
    assert not allows([], requested)


@pytest.mark.parametrize(
    ("opened", "requested"),
    [
        (["orders.42"], "orders.42"),
        (["orders.*"], "orders.*"),
        (["orders.>"], "orders.*"),
        (["orders.>"], "orders.eu.>"),
        (["orders.>"], "orders.*.items"),
        (["*.public"], "orders.public"),
        ([">"], "*.>"),
        (["secret", "orders.*"], "orders.42"),
        (["$KV.flags.>"], "$KV.flags.*"),
        (["$KV.>"], "$KV.>"),
    ],
)
def test_pattern_within_one_allowed_pattern_is_allowed(opened: list[str], requested: str) -> None:
    assert allows(opened, requested)


@pytest.mark.parametrize(
    ("opened", "requested"),
    [
        (["orders.eu.>"], "orders.*"),
        (["orders.eu.>"], "orders.>"),
        (["orders.eu.>"], "orders.eu"),
        (["orders.*"], "orders.>"),
        (["orders.*"], "orders.eu.42"),
        (["orders.*"], "orders"),
        (["orders"], "Orders"),
        (["orders"], "*"),
        (["orders.a", "orders.b"], "orders.*"),
        ([">"], "$SYS.>"),
        (["*.>"], "_INBOX.>"),
        (["*"], "$SYS"),
        (["$KV.flags.>"], "$KV.>"),
        (["$KV.>"], ">"),
    ],
)
def test_pattern_not_within_one_allowed_pattern_is_forbidden(opened: list[str], requested: str) -> None:
    assert not allows(opened, requested)


@pytest.mark.parametrize("requested", ["_NATSBRIDGE", "_NATSBRIDGE.>", "_NATSBRIDGE.*", "_NATSBRIDGE.worker.7"])
def test_control_subjects_can_neither_be_allowed_nor_subscribed(requested: str) -> None:
    assert requested.startswith(CONTROL_TOKEN)
    assert not allows([">", "_NATSBRIDGES.>"], requested)
    with pytest.raises(ValueError, match="the bridge's own"):
        Permissions([requested])
    with pytest.raises(ValueError, match="aliases"):
        Permissions([">"], aliases={"me.": f"{CONTROL_TOKEN}."})


def test_first_token_longer_than_control_token_is_allowed() -> None:
    assert allows(["_NATSBRIDGES.>"], "_NATSBRIDGES.a")


def test_invalid_pattern_in_subscribe_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"a\.\.b"):
        Permissions(["orders.>", "a..b"])


# Denied patterns


@pytest.mark.parametrize(
    ("denied", "requested"),
    [
        ("secret", "secret"),
        ("secret.>", "secret.>"),
        ("secret.>", "secret.*"),
        ("*.secret", "a.secret"),
        ("*.secret", "*.secret"),
        (">", "a"),
        # Wildcards match reserved tokens in denied patterns, but not in allowed ones.
        ("*.secret", "$KV.secret"),
        (">", "$KV.>"),
    ],
)
def test_pattern_within_denied_pattern_is_forbidden(denied: str, requested: str) -> None:
    assert not allows([">", "$KV.>"], requested, deny=[denied])


def test_grant_excludes_only_overlapping_denied_patterns() -> None:
    permissions = Permissions([">"], deny=["orders.secret.>", "*.hidden", "users.>"])
    assert permissions.grant("orders.>").excluded == ("*.hidden", "orders.secret.>")
    assert permissions.grant("orders.eu.>").excluded == ()
    assert permissions.grant("orders.eu").excluded == ()


TOKENS = ("a", "b")
SUBJECTS = [".".join(tokens) for size in (1, 2, 3) for tokens in product(TOKENS, repeat=size)]
PATTERNS = [
    ".".join(tokens)
    for size in (1, 2, 3)
    for tokens in product((*TOKENS, "*", ">"), repeat=size)
    if ">" not in tokens[:-1]
]
# Longer than any pattern, so that a `>` is known by what it alone matches.
UNIVERSE = [*SUBJECTS, *(".".join(tokens) for tokens in product(TOKENS, repeat=4))]
MATCHED = {pattern: frozenset(filter(subjects.matcher((pattern,)), UNIVERSE)) for pattern in PATTERNS}

some_patterns = st.lists(st.sampled_from(PATTERNS), max_size=3)


@given(some_patterns, some_patterns, st.sampled_from(PATTERNS), st.booleans())
def test_grants_and_exclusions_match_brute_force(
    opened: list[str], shut: list[str], requested: str, literal_only: bool
) -> None:
    asked = MATCHED[requested]
    denied = frozenset().union(*(MATCHED[pattern] for pattern in shut))
    wildcard = "*" in requested or ">" in requested
    allowed = any(asked <= MATCHED[pattern] for pattern in opened)
    refused = any(asked <= MATCHED[pattern] for pattern in shut)
    expected = allowed and not refused and not (wildcard and literal_only)
    permissions = Permissions(opened, shut, allow_wildcards=not literal_only)
    assert permissions.explain(requested).allowed == expected
    if expected:
        excluded = permissions.grant(requested).excluded
        hidden = subjects.matcher(excluded) if excluded else lambda _: False
        assert {subject for subject in asked if not hidden(subject)} == asked - denied
        # Clients with the same view share it, so a grant lists no exclusion without effect.
        assert all(MATCHED[pattern] & asked for pattern in excluded)


# Comparison with the plain form

WORDS = st.sampled_from(("a", "b", "$x", "_y", "*", "{v}", "{v}b", "_NATSBRIDGE"))
wild_patterns = st.tuples(st.lists(WORDS, min_size=1, max_size=4), st.sampled_from(("", "", ".>"))).map(
    lambda parts: ".".join(parts[0]) + parts[1]
)
long_lists = st.one_of(st.lists(wild_patterns, max_size=4), st.lists(wild_patterns, min_size=12, max_size=40))
literal_prefixes = st.lists(st.sampled_from(("a", "b", "$x", "me")), min_size=1, max_size=3).map(
    lambda tokens: ".".join(tokens) + "."
)
requests = st.one_of(wild_patterns, st.tuples(literal_prefixes, wild_patterns).map("".join), st.sampled_from([">", ""]))


@given(
    long_lists,
    long_lists,
    long_lists,
    st.sampled_from(("1", "a", "ab", "x{v}")),
    st.dictionaries(literal_prefixes, literal_prefixes, max_size=4),
    st.booleans(),
    st.lists(requests, min_size=1, max_size=20),
)
def test_decisions_are_those_of_one_comparison_after_another(
    opened: list[str],
    shut: list[str],
    past: list[str],
    value: str,
    aliases: dict[str, str],
    wild: bool,
    requested: list[str],
) -> None:
    variables = {"v": value}
    opened = [pattern for pattern in opened if "_NATSBRIDGE" not in pattern.split(".")[0]]
    past = [pattern for pattern in past if "_NATSBRIDGE" not in pattern.split(".")[0]]
    permissions = Permissions(opened, shut, variables, aliases, wild, history=past)
    plain = LinearPermissions(opened, shut, variables, aliases, wild, history=past)
    for pattern in requested:
        assert permissions.explain(pattern) == plain.explain(pattern), pattern
        assert result(permissions.grant, pattern) == result(plain.grant, pattern), pattern


def result(grant: Callable[[str], tuple[Any, ...]], pattern: str) -> object:
    """Return the fields of a grant, or the error."""
    try:
        return tuple(grant(subjects.validate(pattern)))
    except (ForbiddenSubject, InvalidSubject) as error:
        return type(error), error.message, error.subjects


@given(
    st.lists(st.one_of(wild_patterns, st.sampled_from(["a..b", "{w}", "{", "a.{v }", "{v}.*x"])), max_size=6),
    st.sampled_from(("1", "$", "_NATSBRIDGE", "x" * 250)),
)
def test_errors_of_lists_are_those_of_one_check_after_another(patterns: list[str], value: str) -> None:
    for _ in range(2):
        assert error_of(lambda: Permissions(patterns, variables={"v": value})) == error_of(
            lambda: LinearPermissions(patterns, variables={"v": value})
        )
        assert error_of(lambda: Permissions(deny=patterns, variables={"v": value})) == error_of(
            lambda: LinearPermissions(deny=patterns, variables={"v": value})
        )
        assert error_of(lambda: Permissions(history=patterns, variables={"v": value})) == error_of(
            lambda: LinearPermissions(history=patterns, variables={"v": value})
        )


def error_of(make: Callable[[], object]) -> str | None:
    try:
        make()
    except ValueError as error:
        return str(error)
    return None


# Cost


def test_lists_are_indexed_once_and_only_for_a_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, ...]] = []
    build = PatternIndex._build

    def count(index: PatternIndex) -> None:
        built.append(index.patterns)
        build(index)

    monkeypatch.setattr(PatternIndex, "_build", count)
    opened = [f"once.{number}.>" for number in range(300)]
    for identity in ("ada", "bob"):
        permissions = Permissions([*opened, "own.{user}"], ["once.1.{user}"], {"user": identity}, identity=identity)
        assert permissions.identity == identity
        assert built == []
    for number in range(100):
        permissions.grant(f"once.{number}.x")
    assert Permissions([*opened, "own.{user}"], variables={"user": "eve"}).explain("own.eve").allowed
    assert built == [tuple(opened)]


def make_decisions(allowed: str, denied: str, requested: str) -> Callable[[int], Callable[[], object]]:
    def make(size: int) -> Callable[[], object]:
        permissions = Permissions(
            [allowed.format(number) for number in range(size)], [denied.format(number) for number in range(size)]
        )
        permissions.explain("a")
        wanted = [requested.format(number) for number in range(200)]
        return lambda: [permissions.explain(pattern) for pattern in wanted]

    return make


@pytest.mark.parametrize(
    ("allowed", "denied", "requested"),
    [
        ("rooms.{}.>", "rooms.{}.private.>", "rooms.7.a.{}"),
        ("rooms.{}.>", "rooms.{}.private.>", "halls.{}"),
        ("*.rooms.{}.>", "*.*.{}", "*.rooms.*.{}"),
        ("rooms.{}.>", "rooms.{}.private.>", "rooms.*.{}.>"),
    ],
)
def test_decision_takes_linear_time(allowed: str, denied: str, requested: str) -> None:
    assert_linear(make_decisions(allowed, denied, requested), 2_000)


def test_grant_with_many_exclusions_takes_linear_time() -> None:
    def make(size: int) -> Callable[[], object]:
        denied = [f"rooms.{number}.private.{number % 7}" for number in range(size)]
        permissions = Permissions([">"], denied, aliases={"me.": "rooms.7."})
        wanted = [*(f"rooms.*.private.{number}" for number in range(7)), "rooms.>", ">", "*.>"] * 20
        return lambda: [permissions.authorize(pattern) for pattern in wanted]

    assert_linear(make, 2_000)


def test_alias_is_found_in_linear_time() -> None:
    def make(size: int) -> Callable[[], object]:
        permissions = Permissions([">"], aliases={f"me{number}.": f"users.{number}." for number in range(size)})
        permissions.explain("a")
        return lambda: [permissions.authorize(f"me{number}.x") for number in range(300)]

    assert_linear(make, 1_000)


def test_permissions_are_made_in_linear_time() -> None:
    def make(size: int) -> Callable[[], object]:
        opened = [f"rooms.{size}.{number}.>" for number in range(size)]
        return lambda: [Permissions([*opened, f"own.{number}"], variables={"user": "1"}) for number in range(5)]

    assert_linear(make, 2_000)


# The app's values


def test_variables_replace_their_placeholders() -> None:
    permissions = Permissions(
        ["users.{user}.>", "{tenant}-{user}.x"], ["users.{user}.secret"], variables={"user": "42", "tenant": "acme"}
    )
    assert permissions.explain("users.42.a").allowed
    assert permissions.explain("acme-42.x").allowed
    assert not permissions.explain("users.42.secret").allowed
    assert not permissions.explain("users.43.a").allowed
    assert not permissions.explain("users.{user}.a").allowed


@pytest.mark.parametrize(
    "value", ["", ".", "a.b", "*", ">", "a.>", "a b", "a\n", "a\r\nPUB x 0", "a\0", "ü", "a" * 256, 42, None]
)
def test_variable_that_is_not_one_token_is_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match="variables"):
        Permissions(["users.{user}.>"], variables={"user": value})
    with pytest.raises(ValueError, match="variables"):
        Permissions(["users.>"], variables={"user": value})


@pytest.mark.parametrize("pattern", ["{user}.>", "{user}", "{user}x.>"])
@pytest.mark.parametrize("value", ["$SYS", "_INBOX", "$", "_"])
def test_variable_cannot_allow_reserved_subject(pattern: str, value: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        Permissions([pattern], variables={"user": value})
    Permissions(["users.{user}.>", f"_x{value}.{{user}}"], deny=[pattern], variables={"user": value})


@pytest.mark.parametrize("name", ["subscribe", "deny", "history"])
@pytest.mark.parametrize("pattern", ["users.{user}.>", "users.{}.>", "{a}{user}", "users.{a-b}.>", "users.{a }"])
def test_placeholder_without_variable_is_rejected(name: str, pattern: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} has .* but variables has no '"):
        Permissions(variables={"a": "1"}, **{name: [pattern]})  # type: ignore[arg-type]


def test_variables_cannot_make_pattern_too_long() -> None:
    with pytest.raises(ValueError, match="subscribe"):
        Permissions(["a.{v}.{v}"], variables={"v": "x" * 200})


# Names of the app's own


ME = Permissions(["tenants.42.>"], aliases={"me.": "tenants.42.users.7.", "me.team.": "tenants.42.teams.3."})


@pytest.mark.parametrize(
    ("requested", "real"),
    [
        ("me.orders.>", "tenants.42.users.7.orders.>"),
        ("me.>", "tenants.42.users.7.>"),
        ("me.*", "tenants.42.users.7.*"),
        ("me.team.x", "tenants.42.teams.3.x"),
        ("me.team", "tenants.42.users.7.team"),
        ("me.teams.x", "tenants.42.users.7.teams.x"),
        ("tenants.42.users.8.x", "tenants.42.users.8.x"),
        ("tenants.42.users.7", "tenants.42.users.7"),
    ],
)
def test_alias_resolves_to_real_pattern(requested: str, real: str) -> None:
    grant = ME.grant(requested)
    assert (grant.pattern, grant.real) == (requested, real)
    assert real == grant.target + requested.removeprefix(grant.alias)
    assert ME.explain(requested).real_pattern == real


@pytest.mark.parametrize(
    "requested",
    [
        "tenants.42.users.7.orders.>",
        "tenants.42.users.7.>",
        "tenants.42.users.7.x",
        "tenants.42.teams.3.*",
        "me",
        "*.orders",
        "me2.x",
        "Me.x",
    ],
)
def test_aliased_subject_is_forbidden_under_its_real_name(requested: str) -> None:
    with pytest.raises(ForbiddenSubject) as refused:
        ME.grant(requested)
    assert refused.value.subjects == (requested,)
    assert refused.value.message == f"Not allowed: '{requested}'"


def test_wildcard_pattern_excludes_aliased_subjects() -> None:
    assert ME.grant("tenants.42.>").excluded == ("tenants.42.teams.3.>", "tenants.42.users.7.>")
    assert ME.grant("tenants.42.users.*.orders").excluded == ("tenants.42.users.7.>",)
    assert ME.grant("me.>").excluded == ()


def test_deny_applies_to_real_subjects() -> None:
    permissions = Permissions(["t.>"], ["t.1.secret.>", "me.open"], aliases={"me.": "t.1."})
    assert permissions.grant("me.>").excluded == ("t.1.secret.>",)
    assert permissions.explain("me.open").allowed
    with pytest.raises(ForbiddenSubject) as refused:
        permissions.grant("me.secret.x")
    assert "t.1" not in refused.value.message


def test_real_pattern_behind_alias_must_be_valid_and_allowed() -> None:
    long = Permissions([">"], aliases={"me.": f"{'x' * 200}."})
    assert long.explain(f"me.{'y' * 54}").allowed
    with pytest.raises(InvalidSubject) as invalid:
        long.grant(f"me.{'y' * 55}")
    assert "x" not in invalid.value.message.replace("Not a valid subject", "")
    assert not Permissions([">"], aliases={"me.": "$SYS."}).explain("me.x").allowed
    assert not Permissions([">"], aliases={"me.": "_inner."}).explain("me.>").allowed
    assert Permissions(["_inner.>"], aliases={"me.": "_inner."}).explain("me.>").allowed


@pytest.mark.parametrize(
    "names",
    [
        {"me": "a."},
        {"me.": "a"},
        {"": "a."},
        {"me.": ""},
        {".": "a."},
        {"me.": "a.*."},
        {"*.": "a."},
        {"me.": "a..b."},
        {"me.": "a b."},
        {">": "a."},
        {"me.": 1},
        [("me.", "a.")],
        "me.",
    ],
)
def test_alias_that_is_not_whole_literal_tokens_is_rejected(names: Any) -> None:
    with pytest.raises(ValueError, match="aliases"):
        Permissions(aliases=names)


# The rest


@pytest.mark.parametrize("requested", ["*", "a.*", "a.>", ">"])
def test_only_literal_patterns_are_allowed_without_allow_wildcards(requested: str) -> None:
    assert allows([">"], requested)
    assert not allows([">"], requested, allow_wildcards=False)
    assert allows([">"], "a.b", allow_wildcards=False)


@pytest.mark.parametrize(
    ("expires", "at"),
    [
        (None, inf),
        (0, 0.0),
        (12.5, 12.5),
        (datetime(2026, 1, 1, tzinfo=UTC), 1767225600.0),
        (datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 1767225600.0),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-23, minutes=-59))), 253402387140.0),
        (253402387140.0, 253402387140.0),
    ],
)
def test_expires_accepts_unix_seconds_aware_datetime_or_none(expires: Any, at: float) -> None:
    assert Permissions(expires=expires).expires_at == at


@pytest.mark.parametrize("expires", [1767225600_000, 1767225600e6, 10**400, -(10**400)], ids=range(4))
def test_expires_in_milliseconds_or_out_of_range_is_rejected(expires: float) -> None:
    with pytest.raises(ValueError, match="in Unix seconds, not milliseconds"):
        Permissions(expires=expires)


@pytest.mark.parametrize("expires", [datetime(2026, 1, 1), nan, inf, -inf, True, "2026-01-01", [1]])
def test_naive_non_finite_or_mistyped_expires_is_rejected(expires: Any) -> None:
    with pytest.raises(ValueError, match="expires"):
        Permissions(expires=expires)


@pytest.mark.parametrize(
    "wrong",
    [
        {"subscribe": "orders"},
        {"subscribe": b"orders"},
        {"subscribe": 5},
        {"subscribe": [5]},
        {"subscribe": None},
        {"deny": "orders"},
        {"deny": ["a..b"]},
        {"history": "orders"},
        {"history": [5]},
        {"history": None},
        {"history": ["a..b"]},
        {"history": ["_NATSBRIDGE.>"]},
        {"history": ["{user}.>"]},
        {"variables": ["a"]},
        {"variables": {"not a name": "a"}},
        {"variables": {1: "a"}},
        {"allow_wildcards": 1},
        {"identity": ""},
        {"identity": 42},
        {"identity": "ad\udcffa"},
    ],
)
def test_invalid_argument_is_rejected_and_named_in_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} "):
        Permissions(**wrong)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_permissions_can_be_copied_and_pickled(again: Callable[[Permissions], Permissions]) -> None:
    permissions = Permissions(["a.{x}"], ["b"], {"x": "1"}, {"me.": "c.", "me.too.": "d."}, True, "ada", 5.0, ["a.1"])
    other = again(permissions)
    assert other == permissions
    assert hash(other) == hash(permissions)
    assert other.explain("a.1") == permissions.explain("a.1")
    assert list(other.aliases) == list(permissions.aliases)


def test_permissions_are_immutable() -> None:
    opened, values, names = ["a.{x}"], {"x": "1"}, {"me.": "b."}
    permissions = Permissions(opened, variables=values, aliases=names)
    opened.append("c")
    values["x"] = "2"
    names["us."] = "c."
    assert permissions == Permissions(["a.{x}"], variables={"x": "1"}, aliases={"me.": "b."})
    with pytest.raises(FrozenInstanceError):
        permissions.identity = "x"  # type: ignore[misc]
    for mapping in (permissions.variables, permissions.aliases):
        assert isinstance(mapping, Mapping)
        with pytest.raises(TypeError):
            mapping["x"] = "3"  # type: ignore[index]


@pytest.mark.parametrize(
    ("requested", "explanation"),
    [
        ("orders.eu", Explanation(True, "subscribe orders.>", "orders.eu", True, "history orders.>")),
        (
            "orders.>",
            Explanation(True, "subscribe orders.>; except orders.secret", "orders.>", True, "history orders.>"),
        ),
        ("orders.secret", Explanation(False, "deny orders.secret", "orders.secret")),
        (
            "me.x",
            Explanation(True, "subscribe users.7.>", "users.7.x", False, "no pattern in history includes users.7.x"),
        ),
        ("me.inbox", Explanation(True, "subscribe users.7.>", "users.7.inbox", True, "history users.7.inbox")),
        ("users.7.x", Explanation(False, "aliases: users.7.> has an alias", "users.7.x")),
        ("other", Explanation(False, "no pattern in subscribe includes other", "other")),
        ("_NATSBRIDGE.x", Explanation(False, "the bridge's own subjects are never allowed", "_NATSBRIDGE.x")),
        ("a..b", Explanation(False, "not a valid subject", "a..b")),
        ("", Explanation(False, "not a valid subject", "")),
    ],
)
def test_explanation_names_deciding_rule(requested: str, explanation: Explanation) -> None:
    permissions = Permissions(
        ["orders.>", "users.{user}.>"],
        ["orders.secret"],
        variables={"user": "7"},
        aliases={"me.": "users.7."},
        history=["orders.>", "users.{user}.inbox"],
    )
    assert permissions.explain(requested) == explanation


@pytest.mark.parametrize(
    ("opened", "shut", "rule"),
    [
        (["a.>", "a.{v}", "a.x"], [], "subscribe a.>"),
        (["a.{v}", "a.>", "a.x"], [], "subscribe a.x"),
        ([">"], ["{v}.>", "a.*", "*.{v}", "a.x"], "deny *.x"),
        ([">"], ["a.>", "a.{v}", "a.*"], "deny a.*"),
        ([">"], ["a.{v}.y", "a.>", "a.{v}", "b"], "deny a.>"),
    ],
)
def test_first_rule_is_named_with_or_without_variable(opened: list[str], shut: list[str], rule: str) -> None:
    permissions = Permissions(opened, shut, variables={"v": "x"})
    assert permissions.explain("a.x").rule == rule
    assert LinearPermissions(opened, shut, {"v": "x"}).explain("a.x").rule == rule
