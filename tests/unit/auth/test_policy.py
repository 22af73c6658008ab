from collections.abc import Sequence

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.auth.policy import SubscriptionPolicy
from sanic_nats_bridge.errors import BridgeError, ForbiddenSubject, InvalidSubject, SubscriptionLimitExceeded


def authorize(patterns: Sequence[str], held: Sequence[str] = (), opened: Sequence[str] = (">",)) -> list[str]:
    policy = SubscriptionPolicy(3)
    return [grant.pattern for grant in policy.authorize(Permissions(opened), policy.validate(patterns), held)]


@pytest.mark.parametrize(
    ("patterns", "held", "admitted"),
    [
        (["a", "b", "c"], [], ["a", "b", "c"]),
        (["b", "a", "b"], [], ["b", "a"]),
        (["c"], ["a", "b"], ["c"]),
        (["a", "b", "c"], ["c", "b", "a"], []),
        (["c", "c", "a"], ["a", "b"], ["c"]),
    ],
    ids=[
        "up to the limit",
        "duplicates removed, in order",
        "added to existing ones",
        "all already subscribed",
        "some already subscribed",
    ],
)
def test_new_patterns_are_authorized_up_to_limit(patterns: list[str], held: list[str], admitted: list[str]) -> None:
    assert authorize(patterns, held) == admitted


@pytest.mark.parametrize(
    ("patterns", "held", "error", "concerned"),
    [
        (["a", "b", "c", "d"], [], SubscriptionLimitExceeded, ["a", "b", "c", "d"]),
        (["a", "a..b", "secret", "d"], [], SubscriptionLimitExceeded, ["a", "a..b", "secret", "d"]),
        (["c", "d"], ["a", "b"], SubscriptionLimitExceeded, ["c", "d"]),
        (["d", "d"], ["a", "b", "c"], SubscriptionLimitExceeded, ["d"]),
        (["secret", "a..b"], [], InvalidSubject, ["a..b"]),
        (["d", "a..b"], ["a", "b", "c"], InvalidSubject, ["a..b"]),
        (["a", "secret"], [], ForbiddenSubject, ["secret"]),
        (["d", "secret"], ["a", "b", "c"], ForbiddenSubject, ["secret"]),
    ],
    ids=[
        "too many",
        "too many before invalid",
        "too many with existing ones",
        "one too many, twice",
        "invalid before forbidden",
        "invalid before too many held",
        "forbidden",
        "forbidden before too many held",
    ],
)
def test_most_severe_error_is_raised_with_its_subjects(
    patterns: list[str], held: list[str], error: type[BridgeError], concerned: list[str]
) -> None:
    with pytest.raises(error) as refused:
        authorize(patterns, held, ["a", "b", "c", "d"])
    assert refused.value.subjects == tuple(concerned)


def test_validate_does_not_check_permissions() -> None:
    assert SubscriptionPolicy(3).validate(["secret", "secret", "a"]) == ["secret", "a"]


def test_held_patterns_need_no_decision() -> None:
    policy = SubscriptionPolicy(3)
    assert policy.authorize(Permissions(), ["a", "b"], ["b", "a"]) == []


def test_followed_patterns_are_granted_up_to_limit() -> None:
    policy = SubscriptionPolicy(3)
    permissions = Permissions(follow=["a", "b", "a.>"], aliases={"me.": "a."})
    assert policy.followed(permissions) == permissions.followed
    assert [grant.pattern for grant in policy.followed(permissions)] == ["a", "b", "me.>"]
    assert policy.followed(Permissions(["a"])) == []
    with pytest.raises(ValueError, match=r"^follow must be at most max_subscriptions \(3\) patterns, got 4$"):
        policy.followed(Permissions(follow=["a", "b", "c", "d"]))


@pytest.mark.parametrize("pattern", ["_A.bridge.>", "_A.bridge.x", "_A.>", "_A.*.x"])
def test_subjects_of_workers_cannot_be_followed(pattern: str) -> None:
    policy = SubscriptionPolicy(3, "_A.bridge")
    with pytest.raises(ValueError, match=r"^follow must not allow the bridge's own subjects, got '_A"):
        policy.followed(Permissions(follow=[pattern]))
    assert policy.followed(Permissions(follow=["_A.bridge", "_A.other.>", ">"]))
