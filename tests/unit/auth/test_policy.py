from collections.abc import Sequence

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.auth.policy import SubscriptionPolicy
from sanic_nats_bridge.errors import BridgeError, ForbiddenSubject, InvalidSubject, SubscriptionLimitExceeded


def admit(patterns: Sequence[str], held: Sequence[str] = (), opened: Sequence[str] = (">",)) -> list[str]:
    policy = SubscriptionPolicy(3)
    return [grant.pattern for grant in policy.authorize(Permissions(opened), policy.validate(patterns), held)]


@pytest.mark.parametrize(
    ("patterns", "held", "admitted"),
    [
        (["a", "b", "c"], [], ["a", "b", "c"]),
        (["b", "a", "b"], [], ["b", "a"]),
        (["c"], ["a", "b"], ["c"]),
        (["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]),
        (["c", "c", "a"], ["a", "b"], ["c", "a"]),
    ],
    ids=["as many as may be", "each once, in order", "beside others", "what is held", "some of it held"],
)
def test_patterns_are_admitted_up_to_the_limit(patterns: list[str], held: list[str], admitted: list[str]) -> None:
    assert admit(patterns, held) == admitted


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
        "too many with those held",
        "one too many, twice",
        "invalid before forbidden",
        "invalid before too many held",
        "forbidden",
        "forbidden before too many held",
    ],
)
def test_a_refusal_names_its_subjects_and_the_gravest_comes_first(
    patterns: list[str], held: list[str], error: type[BridgeError], concerned: list[str]
) -> None:
    with pytest.raises(error) as refused:
        admit(patterns, held, ["a", "b", "c", "d"])
    assert refused.value.subjects == tuple(concerned)


def test_valid_asks_for_no_permission() -> None:
    assert SubscriptionPolicy(3).validate(["secret", "secret", "a"]) == ["secret", "a"]
