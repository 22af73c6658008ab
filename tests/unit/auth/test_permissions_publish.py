"""Permissions to publish, to send requests, and to follow patterns from the start."""

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.auth.permissions import Explanation, Permissions
from sanic_nats_bridge.errors import ForbiddenSubject, InvalidSubject, PublishForbidden, RequestForbidden
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_index import PatternIndex
from sanic_nats_bridge.protocol.publish import PublishAction
from tests.support.growth import assert_linear
from tests.support.linear_permissions import LinearPermissions
from tests.unit.auth.test_permissions import (
    MATCHED,
    UNIVERSE,
    error_of,
    literal_prefixes,
    long_lists,
    requests,
    some_patterns,
    wild_patterns,
)

ACTIONS: tuple[PublishAction, ...] = ("publish", "request")
BOTH = pytest.mark.parametrize("action", ACTIONS)


def permissions_for(action: PublishAction, patterns: Sequence[str], **others: Any) -> Permissions:
    return Permissions(**others | {action: patterns})


def allows(action: PublishAction, patterns: Sequence[str], subject: str, **others: Any) -> bool:
    """Return True if the client may publish to the subject, and check that `explain` agrees."""
    permissions = permissions_for(action, patterns, **others)
    explained = permissions.explain(subject)
    allowed: bool = getattr(explained, action)
    if allowed:
        assert permissions.authorize_publish(subject, action) == explained.real_pattern
        return True
    with pytest.raises(PublishForbidden if action == "publish" else RequestForbidden) as refused:
        permissions.authorize_publish(subject, action)
    assert refused.value.subjects == (subject,)
    return False


@BOTH
@pytest.mark.parametrize("subject", ["a", "a.b", "$KV.a.b", "_A.b"])
def test_no_subject_is_allowed_by_default(action: PublishAction, subject: str) -> None:
    assert not allows(action, [], subject)
    assert Permissions([">", "$KV.>", "_A.>"], history=[">"]).explain(subject).publish is False


@BOTH
@pytest.mark.parametrize(
    ("patterns", "subject", "allowed"),
    [
        (["rooms.7.say"], "rooms.7.say", True),
        (["rooms.*.say"], "rooms.7.say", True),
        (["rooms.>"], "rooms.7.say", True),
        (["a", "rooms.>"], "rooms.7", True),
        ([">"], "rooms", True),
        (["rooms.*"], "rooms.7.say", False),
        (["rooms.>"], "rooms", False),
        (["rooms"], "Rooms", False),
        ([">"], "$JS.API.STREAM.DELETE.ORDERS", False),
        (["*.>"], "_INBOX.a", False),
        (["*"], "$SYS", False),
        (["$KV.prefs.*"], "$KV.prefs.a", True),
        (["$KV.prefs.*"], "$KV.other.a", False),
        (["_A.>"], "_A.b", True),
        ([">", "_A.>"], "_NATSBRIDGE.shop.worker", False),
        ([">", "_NATSBRIDGES.>"], "_NATSBRIDGES.a", True),
    ],
)
def test_subject_is_allowed_within_one_pattern(
    action: PublishAction, patterns: list[str], subject: str, allowed: bool
) -> None:
    assert allows(action, patterns, subject) is allowed


@BOTH
@pytest.mark.parametrize("subject", ["*", "rooms.*", "rooms.>", ">", "$KV.*"])
def test_subject_with_wildcard_is_rejected(action: PublishAction, subject: str) -> None:
    permissions = permissions_for(action, [">", "$KV.>"])
    with pytest.raises(InvalidSubject, match="Not a subject without wildcards") as refused:
        permissions.authorize_publish(subject, action)
    assert refused.value.subjects == (subject,)
    explained = permissions.explain(subject)
    assert not getattr(explained, action)
    assert getattr(explained, f"{action}_rule") == f"a {action} must have a subject without wildcards"


@BOTH
@pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a b", "größe", "a\r\nPUB b 0", "a\0", "x" * 256])
def test_invalid_subject_is_rejected(action: PublishAction, subject: str) -> None:
    with pytest.raises(InvalidSubject):
        permissions_for(action, [">"]).authorize_publish(subject, action)


def test_lists_are_independent_of_each_other() -> None:
    permissions = Permissions(["s.>"], publish=["p.>"], request=["r.>"], history=["h.>"], follow=["f.>"])
    for subject, publish, request in (("p.a", True, False), ("r.a", False, True), ("s.a", False, False)):
        explained = permissions.explain(subject)
        assert (explained.publish, explained.request) == (publish, request)
    for subject in ("h.a", "f.a"):
        assert not permissions.explain(subject).publish
    for pattern in ("p.a", "r.a", "f.a"):
        with pytest.raises(ForbiddenSubject):
            permissions.grant(pattern)


@BOTH
def test_deny_holds_in_every_direction(action: PublishAction) -> None:
    denied = {"deny": ["rooms.secret.>", "*.hidden", "$KV.*.x"]}
    for subject in ("rooms.secret.say", "a.hidden", "$KV.prefs.x"):
        assert not allows(action, [">", "$KV.>"], subject, **denied)
    assert allows(action, [">", "$KV.>"], "rooms.open.say", **denied)
    # A wildcard in first place of a denied pattern matches reserved tokens.
    assert not allows(action, ["$KV.>"], "$KV.a", deny=[">"])


@BOTH
def test_variables_replace_their_placeholders(action: PublishAction) -> None:
    variables = {"user": "42", "tenant": "acme"}
    patterns = ["users.{user}.>", "{tenant}-{user}.x"]
    for subject, allowed in (("users.42.a", True), ("acme-42.x", True), ("users.43.a", False), ("users", False)):
        assert allows(action, patterns, subject, variables=variables) is allowed


@BOTH
@pytest.mark.parametrize("value", ["$KV", "_A", "_NATSBRIDGE", "_INBOX"])
def test_variable_cannot_allow_reserved_subject(action: PublishAction, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{action} has .* a variable must not make its first token reserved"):
        permissions_for(action, ["{user}.>"], variables={"user": value})


@BOTH
def test_subject_is_judged_by_its_real_name(action: PublishAction) -> None:
    names = {"aliases": {"me.": "users.7.", "js.": "$JS.API.", "bus.": "_NATSBRIDGES."}}
    assert allows(action, ["users.7.>"], "me.say", **names)
    assert permissions_for(action, ["users.7.>"], **names).authorize_publish("me.say", action) == "users.7.say"
    assert not allows(action, ["me.>"], "me.say", **names)
    # By its real name it stays forbidden, as for a subscribe.
    assert not allows(action, [">"], "users.7.say", **names)
    assert allows(action, [">"], "users.8.say", **names)
    for subject in ("js.STREAM.DELETE.A", "bus.x"):
        assert not allows(action, [">", "js.>", "bus.>"], subject, **names)
    assert allows(action, ["$JS.API.STREAM.>"], "js.STREAM.INFO.A", **names)


@BOTH
def test_real_subject_behind_alias_must_be_valid(action: PublishAction) -> None:
    permissions = permissions_for(action, [">"], aliases={"me.": f"{'x' * 200}."})
    assert permissions.authorize_publish(f"me.{'y' * 54}", action)
    with pytest.raises(InvalidSubject) as refused:
        permissions.authorize_publish(f"me.{'y' * 55}", action)
    assert "x" not in refused.value.message.replace("Not a valid subject", "")


@BOTH
def test_error_names_subject_as_client_does(action: PublishAction) -> None:
    permissions = permissions_for(action, [], aliases={"me.": "users.7."})
    with pytest.raises((PublishForbidden, RequestForbidden)) as refused:
        permissions.authorize_publish("me.say", action)
    assert "'me.say'" in refused.value.message
    assert "users" not in refused.value.message


@BOTH
def test_clients_without_wildcards_may_publish(action: PublishAction) -> None:
    assert allows(action, ["rooms.>"], "rooms.7", allow_wildcards=False)


# Comparison with brute force and with the plain form


@given(some_patterns, some_patterns, some_patterns)
def test_decisions_match_brute_force(published: list[str], requested: list[str], denied: list[str]) -> None:
    permissions = Permissions(deny=denied, publish=published, request=requested)
    shut = frozenset().union(*(MATCHED[pattern] for pattern in denied))
    for action, patterns in zip(ACTIONS, (published, requested), strict=True):
        expected = frozenset().union(*(MATCHED[pattern] for pattern in patterns)) - shut
        allowed = {subject for subject in UNIVERSE if is_allowed(permissions, subject, action)}
        assert allowed == expected


def is_allowed(permissions: Permissions, subject: str, action: PublishAction) -> bool:
    try:
        permissions.authorize_publish(subject, action)
    except (PublishForbidden, RequestForbidden):
        return False
    return True


@given(
    long_lists,
    long_lists,
    long_lists,
    st.sampled_from(("1", "a", "ab")),
    st.dictionaries(literal_prefixes, literal_prefixes, max_size=4),
    st.lists(requests, min_size=1, max_size=20),
)
def test_decisions_are_those_of_one_comparison_after_another(
    published: list[str],
    requested: list[str],
    denied: list[str],
    value: str,
    aliases: dict[str, str],
    subjects_asked: list[str],
) -> None:
    variables = {"v": value}
    published, requested = without_control(published), without_control(requested)
    lists: dict[str, Any] = {"publish": published, "request": requested}
    permissions = Permissions([">"], denied, variables, aliases, **lists)
    plain = LinearPermissions([">"], denied, variables, aliases, **lists)
    for subject in subjects_asked:
        assert permissions.explain(subject) == plain.explain(subject), subject
        if subjects.is_valid(subject) and not subjects.has_wildcard(subject):
            for action in ACTIONS:
                assert result(permissions, subject, action) == result(plain, subject, action), subject


def without_control(patterns: list[str]) -> list[str]:
    return [pattern for pattern in patterns if "_NATSBRIDGE" not in pattern.split(".")[0]]


def result(permissions: Permissions | LinearPermissions, subject: str, action: PublishAction) -> object:
    try:
        return permissions.authorize_publish(subject, action)
    except (PublishForbidden, RequestForbidden, InvalidSubject) as error:
        return type(error), error.message, error.subjects


@given(
    st.sampled_from(("publish", "request", "follow")),
    st.lists(st.one_of(wild_patterns, st.sampled_from(["a..b", "{w}", "{", "a.{v }", "{v}.*x"])), max_size=6),
    st.sampled_from(("1", "$", "_NATSBRIDGE", "x" * 250)),
)
def test_errors_of_lists_are_those_of_one_check_after_another(name: str, patterns: list[str], value: str) -> None:
    lists: dict[str, Any] = {name: patterns}
    for _ in range(2):
        assert error_of(lambda: Permissions(variables={"v": value}, **lists)) == error_of(
            lambda: LinearPermissions(variables={"v": value}, **lists)
        )


# Patterns that are followed from the start


def names_of(permissions: Permissions) -> list[tuple[str, str]]:
    return [(grant.pattern, grant.real) for grant in permissions.followed]


def test_nothing_is_followed_by_default() -> None:
    assert Permissions([">"], publish=[">"]).followed == []


def test_followed_patterns_are_granted_without_subscribe() -> None:
    permissions = Permissions(
        deny=["news.secret", "tasks.>"],
        variables={"user": "7"},
        allow_wildcards=False,
        follow=["users.{user}.notice", "news.*", "news.*", "tasks.new", "$KV.prefs.>"],
    )
    assert names_of(permissions) == [
        ("users.7.notice", "users.7.notice"),
        ("news.*", "news.*"),
        ("$KV.prefs.>", "$KV.prefs.>"),
    ]
    assert [grant.excluded for grant in permissions.followed] == [(), ("news.secret",), ()]


def test_followed_pattern_has_name_by_most_specific_alias() -> None:
    aliases = {"tenant.": "t.1.", "me.": "t.1.users.7.", "me.too.": "t.2."}
    permissions = Permissions(aliases=aliases, follow=["t.1.users.7.notice", "t.1.news.>", "t.3.x", "t.>", "t.2.x.*"])
    assert names_of(permissions) == [
        ("me.notice", "t.1.users.7.notice"),
        ("tenant.news.>", "t.1.news.>"),
        ("t.3.x", "t.3.x"),
        ("t.>", "t.>"),
        ("me.too.x.*", "t.2.x.*"),
    ]
    notice = permissions.followed[0]
    assert (notice.alias, notice.target) == ("me.", "t.1.users.7.")
    # As if the client had subscribed to it.
    again = Permissions(["t.>"], aliases=aliases)
    assert [again.grant(grant.pattern) for grant in permissions.followed] == permissions.followed
    assert permissions.followed[3].excluded == ("t.1.>", "t.1.users.7.>", "t.2.>")


@pytest.mark.parametrize(
    ("aliases", "pattern"),
    [
        # The name belongs to another subject.
        ({"me.": "users.7."}, "me.x"),
        ({"a.": "x.", "a.b.": "y."}, "x.b.c"),
        # It would be too long.
        ({f"{'a' * 250}.": "x."}, "x.123456"),
    ],
)
def test_followed_pattern_without_name_is_rejected(aliases: dict[str, str], pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^follow has .*, which a client cannot name because of aliases$"):
        Permissions(aliases=aliases, follow=[pattern])


def test_followed_pattern_takes_another_alias_if_the_first_does_not_name_it() -> None:
    permissions = Permissions(aliases={"a.": "x.", "a.b.": "y.", "c.": "x."}, follow=["x.b.c"])
    assert names_of(permissions) == [("c.b.c", "x.b.c")]


@given(
    long_lists,
    long_lists,
    st.dictionaries(literal_prefixes, literal_prefixes, max_size=4),
)
def test_followed_patterns_are_those_that_a_client_could_subscribe_to(
    followed: list[str], denied: list[str], aliases: dict[str, str]
) -> None:
    followed = without_control([pattern.replace("{v}", "1") for pattern in followed])
    denied = [pattern.replace("{v}", "1") for pattern in denied]
    try:
        permissions = Permissions(deny=denied, aliases=aliases, follow=followed)
    except ValueError:
        return  # an alias hides one of them
    client = Permissions(followed, denied, aliases=aliases)
    for grant in permissions.followed:
        assert client.grant(grant.pattern) == grant
    real = {grant.real for grant in permissions.followed}
    assert real == {pattern for pattern in followed if not any(subjects.includes(each, pattern) for each in denied)}


# Lists, copies and comparison


@pytest.mark.parametrize("name", ["publish", "request", "follow"])
@pytest.mark.parametrize(
    "patterns", ["rooms", b"rooms", 5, [5], None, ["a..b"], ["_NATSBRIDGE.>"], ["_NATSBRIDGE"], ["{user}.>"]]
)
def test_invalid_list_is_rejected_and_named_in_error(name: str, patterns: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        Permissions(**{name: patterns})


@pytest.mark.parametrize("name", ["publish", "request", "follow"])
def test_lists_are_keywords_of_immutable_permissions(name: str) -> None:
    given = ["a.{x}"]
    keywords: dict[str, Any] = {name: given, "variables": {"x": "1"}}
    permissions = Permissions(**keywords)
    given.append("b")
    assert getattr(permissions, name) == ("a.{x}",)
    assert permissions != Permissions(variables={"x": "1"})
    assert permissions == Permissions(**keywords | {name: ("a.{x}",)})
    assert f"{name}=('a.{{x}}',)" in repr(permissions)
    for again in (copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), replace):
        other = again(permissions)
        assert (other, hash(other)) == (permissions, hash(permissions))
        assert other.explain("a.1") == permissions.explain("a.1")
    earlier: tuple[Any, ...] = (["a"], ["b"], {"x": "1"}, {"me.": "c."}, False, "ada", 5.0, ["a"])
    with pytest.raises(TypeError):
        Permissions(*earlier, ["a"])  # type: ignore[call-arg]


def test_explanation_names_rules_of_every_direction() -> None:
    permissions = Permissions(
        ["rooms.>"],
        ["rooms.secret.>"],
        {"user": "7"},
        {"me.": "users.7."},
        publish=["rooms.{user}.say", "$KV.prefs.{user}"],
        request=["svc.>"],
        follow=["users.{user}.notice"],
    )
    no_rooms = "no pattern in publish includes rooms.8.say"
    assert permissions.explain("rooms.7.say") == Explanation(
        True, "subscribe rooms.>", "rooms.7.say", False, "no pattern in history includes rooms.7.say",
        True, "publish rooms.7.say",
        False, "no pattern in request includes rooms.7.say",
        False, "no pattern in follow includes rooms.7.say",
    )  # fmt: skip
    assert permissions.explain("rooms.8.say").publish_rule == no_rooms
    assert permissions.explain("rooms.secret.x").publish_rule == "deny rooms.secret.>"
    assert permissions.explain("svc.price").request_rule == "request svc.>"
    notice = permissions.explain("me.notice")
    assert (notice.follow, notice.follow_rule) == (True, "follow users.7.notice")
    assert permissions.explain("users.7.notice").follow_rule == "aliases: users.7.> has an alias"
    assert permissions.explain("_NATSBRIDGE.x").publish_rule == "the bridge's own subjects are never allowed"
    assert permissions.explain("a..b") == Explanation(False, "not a valid subject", "a..b")


# Cost


@pytest.mark.parametrize(
    ("patterns", "subject"),
    [("rooms.{}.>", "rooms.7.a.{}"), ("rooms.{}.>", "halls.{}"), ("*.rooms.{}.>", "a.rooms.7.{}")],
)
def test_decision_takes_the_same_time_for_longer_lists(patterns: str, subject: str) -> None:
    def make(size: int) -> Callable[[], object]:
        listed = [patterns.format(number) for number in range(size)]
        permissions = Permissions(deny=[f"{each}.x" for each in listed if ">" not in each], publish=listed)
        permissions.explain("a")
        wanted = [subject.format(number) for number in range(200)]
        return lambda: [is_allowed(permissions, each, "publish") for each in wanted]

    assert_linear(make, 2_000)


def test_lists_are_indexed_once_and_only_for_a_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, ...]] = []
    build = PatternIndex._build

    def count(index: PatternIndex) -> None:
        built.append(index.patterns)
        build(index)

    monkeypatch.setattr(PatternIndex, "_build", count)
    published = [f"say.once.{number}" for number in range(300)]
    others = [f"other.once.{number}" for number in range(300)]
    for identity in ("ada", "bob"):
        permissions = Permissions(
            others, publish=[*published, "own.{user}"], request=others, follow=others, variables={"user": identity}
        )
        assert built == []
    for number in range(100):
        permissions.authorize_publish(f"say.once.{number}")
    other = Permissions(publish=[*published, "own.{user}"], variables={"user": "eve"})
    assert other.authorize_publish("own.eve") == "own.eve"
    assert built == [tuple(published)]
