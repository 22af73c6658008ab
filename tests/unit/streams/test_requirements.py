import dataclasses

import pytest

from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.streams.answers import StreamInfo
from sanic_nats_bridge.streams.requirements import (
    Permission,
    advice_for,
    denied_permissions,
    denied_subscription,
    holds,
    may_hold,
    permissions_for,
    problem_of,
)

INFO = StreamInfo(
    name="ORDERS", created="2026-01-01T00:00:00Z", first_seq=1, last_seq=2, first_time=1, last_time=2, messages=2,
    subjects=("orders.>", "refunds.*"), retention="limits", storage="file", allow_direct=True,
    max_msgs_per_subject=-1, max_age_ns=0, max_msgs=-1, max_bytes=-1, num_replicas=1, is_mirror=False,
    has_sources=False, has_transform=False,
)  # fmt: skip
API = "$JS.API."


def of(*allowed: str) -> tuple[Permission, ...]:
    return tuple(each for each in permissions_for(API, "ORDERS", allow_direct=True) if each.allow in allowed)


@pytest.mark.parametrize(
    ("configured", "pattern", "held"),
    [
        (None, "orders.>", True),
        (None, "refunds.1", True),
        (None, "refunds.>", False),
        (None, ">", False),
        (["orders.*"], "orders.1", True),
        (["orders.*"], "orders.>", False),
        (["orders.*"], "refunds.1", False),
        (["other.>"], "other.1", False),
    ],
)
def test_stream_holds_patterns_that_the_setting_and_its_subjects_include(
    configured: list[str] | None, pattern: str, held: bool
) -> None:
    assert holds(configured, INFO, pattern) is held


def test_mirror_holds_the_patterns_of_the_setting() -> None:
    mirror = dataclasses.replace(INFO, subjects=())
    assert holds(["orders.>"], mirror, "orders.1")
    assert not holds(None, mirror, "orders.1")


def test_wildcard_of_the_setting_does_not_include_reserved_subjects() -> None:
    assert not may_hold([">"], "$KV.prefs.>")
    assert may_hold(["$KV.prefs.>"], "$KV.prefs.a")
    assert may_hold(None, "$KV.prefs.>")


def test_each_probe_needs_its_permission() -> None:
    permissions = permissions_for("$JS.hub.API.", "ORDERS", allow_direct=True)
    assert len({each.allow for each in permissions}) == 6
    for each in permissions:
        assert subjects.includes(each.allow, each.probe)
        assert not subjects.has_wildcard(each.probe)
        assert each.allow.startswith(("$JS.hub.API.", "$JS.FC."))


def test_direct_get_is_needed_only_if_the_stream_has_it() -> None:
    allowed = {each.allow for each in permissions_for(API, "ORDERS", allow_direct=False)}
    assert "$JS.API.DIRECT.GET.ORDERS" not in allowed
    assert len(allowed) == 5


@pytest.mark.parametrize("retention", ["interest", "workqueue"])
def test_only_streams_with_limits_serve_clients(retention: str) -> None:
    assert problem_of(INFO, ()) is None
    problem = problem_of(dataclasses.replace(INFO, retention=retention), ())
    assert f"'{retention}'" in str(problem)


def test_missing_permissions_are_a_problem_except_that_to_delete() -> None:
    delete = of("$JS.API.CONSUMER.DELETE.ORDERS.*")
    assert denied_permissions(delete) is None
    assert problem_of(INFO, delete) is None
    both = of("$JS.API.CONSUMER.DELETE.ORDERS.*", "$JS.FC.ORDERS.>")
    assert "$JS.API.CONSUMER.DELETE.ORDERS.*, $JS.FC.ORDERS.>" in str(problem_of(INFO, both))


def test_subject_for_messages_and_answers_is_named() -> None:
    problem = str(denied_subscription("_NATSBRIDGE.shop.streams"))
    assert problem == "the NATS user may not subscribe to _NATSBRIDGE.shop.streams.>. Allow this subject in NATS"


def test_advice_names_direct_get_and_the_permission_to_delete() -> None:
    assert advice_for(INFO, ()) == []
    slow = dataclasses.replace(INFO, allow_direct=False)
    direct, delete = advice_for(slow, of("$JS.API.CONSUMER.DELETE.ORDERS.*"))
    assert "allow_direct" in direct
    assert "$JS.API.CONSUMER.DELETE.ORDERS.*" in delete
