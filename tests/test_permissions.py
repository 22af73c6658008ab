from collections.abc import Sequence

import pytest

from sanic_nats_bridge.errors import BridgeError, SubjectForbidden, SubjectInvalid, SubscriptionLimit
from sanic_nats_bridge.permissions import CONTROL_TOKEN, Admission, Permissions


def allows(opened: Sequence[str], requested: str) -> bool:
    try:
        Permissions(opened).require(requested)
    except SubjectForbidden:
        return False
    return True


@pytest.mark.parametrize("requested", ["a", "a.b", "*", ">", "$SYS.>", "_INBOX.>"])
def test_nothing_is_open_by_default(requested: str) -> None:
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
def test_what_lies_wholly_inside_one_opened_pattern_is_allowed(opened: list[str], requested: str) -> None:
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
def test_what_reaches_out_of_every_opened_pattern_is_forbidden(opened: list[str], requested: str) -> None:
    assert not allows(opened, requested)


@pytest.mark.parametrize("requested", ["_NATSBRIDGE", "_NATSBRIDGE.>", "_NATSBRIDGE.*", "_NATSBRIDGE.worker.7"])
def test_the_bridges_own_subjects_are_forbidden_even_where_they_were_opened(requested: str) -> None:
    assert requested.startswith(CONTROL_TOKEN)
    assert not allows([">", "_NATSBRIDGE", "_NATSBRIDGE.>"], requested)


def test_a_longer_first_token_is_not_the_bridges_own() -> None:
    assert allows(["_NATSBRIDGES.>"], "_NATSBRIDGES.a")


def test_what_is_not_a_pattern_cannot_be_opened() -> None:
    with pytest.raises(SubjectInvalid):
        Permissions(["orders.>", "a..b"])


def admission(*opened: str, most: int = 3) -> Admission:
    return Admission(Permissions(opened or [">"]), most)


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
    assert admission().admit(patterns, held) == admitted


@pytest.mark.parametrize(
    ("patterns", "held", "error", "concerned"),
    [
        (["a", "b", "c", "d"], [], SubscriptionLimit, ["a", "b", "c", "d"]),
        (["a", "a..b", "secret", "d"], [], SubscriptionLimit, ["a", "a..b", "secret", "d"]),
        (["c", "d"], ["a", "b"], SubscriptionLimit, ["c", "d"]),
        (["d", "d"], ["a", "b", "c"], SubscriptionLimit, ["d"]),
        (["secret", "a..b"], [], SubjectInvalid, ["a..b"]),
        (["d", "a..b"], ["a", "b", "c"], SubjectInvalid, ["a..b"]),
        (["a", "secret"], [], SubjectForbidden, ["secret"]),
        (["d", "secret"], ["a", "b", "c"], SubjectForbidden, ["secret"]),
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
        admission("a", "b", "c", "d").admit(patterns, held)
    assert refused.value.subjects == tuple(concerned)


def test_valid_asks_for_no_permission() -> None:
    assert admission("a").valid(["secret", "secret", "a"]) == ["secret", "a"]
