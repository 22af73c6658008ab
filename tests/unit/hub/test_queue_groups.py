from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.hub import fan_out
from sanic_nats_bridge.hub.fan_out import FanOut
from sanic_nats_bridge.hub.interest import Interest, QueueGroup
from sanic_nats_bridge.hub.queue_groups import MAX_COPIES, QueueGroups
from sanic_nats_bridge.nats.connection import Connection
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_set import PatternSet
from tests.support.fakes import ALONE, FakeSubscriber, granted
from tests.support.server_model import PATTERNS, SUBJECTS, Walk


def added(groups: QueueGroups, pattern: str) -> Interest:
    interest = Interest(pattern)
    groups.add(interest)
    return interest


@given(st.lists(st.tuples(st.sampled_from(PATTERNS), st.booleans()), max_size=60))
def test_few_copies_of_a_message_arrive_for_any_patterns(steps: list[tuple[str, bool]]) -> None:
    groups = QueueGroups()
    held: dict[str, Interest] = {}
    for pattern, ends in steps:
        if ends and pattern in held:
            groups.discard(held.pop(pattern))
        elif pattern not in held:
            held[pattern] = added(groups, pattern)
    for subject in SUBJECTS:
        matching = [each for each in held.values() if subjects.matches(each.pattern, subject)]
        in_groups = {each.group for each in matching if each.group is not None}
        assert len(in_groups) + sum(each.group is None for each in matching) <= MAX_COPIES


def test_patterns_that_overlap_few_others_have_no_group() -> None:
    groups = QueueGroups()
    patterns = [f"a.{number}.*" for number in range(100)] + ["b.>", "b.*.x", "b.x.*", "b.x.>", "b.*.*", "b.x.x", "b.x"]
    assert {added(groups, pattern).group for pattern in patterns} == {None}
    assert added(groups, "b.*.>").group is not None


def filled() -> QueueGroups:
    groups = QueueGroups()
    assert {added(groups, pattern).group for pattern in ALONE} == {None}
    return groups


def test_each_first_token_has_its_own_group() -> None:
    groups = filled()
    first, second, other, wild = (added(groups, pattern) for pattern in ("a.b.>", "a.>", "b.>", "*.*.x"))
    assert None is not first.group is second.group
    assert len({None, first.group, other.group, wild.group}) == 4


def test_route_has_members_of_the_group_with_views() -> None:
    groups = filled()
    alone = added(groups, "c")
    first, second, wild = (added(groups, pattern) for pattern in ("a.*.x", "a.>", "*.*.x"))
    for interest in (alone, first, wild):
        interest.add(FakeSubscriber(), *granted(interest.pattern))
        groups.update(interest)
    assert isinstance(first.group, QueueGroup)
    assert groups.route(first.group, "a.b.x") == (first,)
    second.add(FakeSubscriber(), *granted("a.>"))
    groups.update(second)
    assert set(groups.route(first.group, "a.b.x")) == {first, second}
    assert groups.route(first.group, "a.b.c") == (second,)
    groups.discard(second)
    assert groups.route(first.group, "a.b.c") == ()


def test_group_that_has_lost_all_members_is_not_used_again() -> None:
    groups = filled()
    first = added(groups, "a.>")
    groups.discard(first)
    second = added(groups, "a.>")
    assert first.group is not None
    assert second.group is not None
    assert first.group.number != second.group.number


# Random walks: messages of several publishers, while clients subscribe and unsubscribe

SEEDS = range(40)
WRITES = ((2000, 20_000), (1, 20_000), (1, 0))
"""Costs of the writes in one turn, and the largest numbers of subscriptions for which a flush is planned at once."""


@pytest.mark.parametrize("seed", SEEDS)
async def test_each_message_comes_once_and_in_order_while_groups_change(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limit_writes(monkeypatch, *WRITES[seed % len(WRITES)])
    await Walk(seed).run(1500)


def _limit_writes(patched: pytest.MonkeyPatch, cost: int, planned: int) -> None:
    patched.setattr(fan_out, "_COST_PER_TURN", cost)
    patched.setattr(fan_out, "_RESERVE", 0)
    patched.setattr(fan_out, "_MAX_PLANNED", planned)


def _without_catching_up(patched: pytest.MonkeyPatch) -> None:
    _limit_writes(patched, 1, 20_000)
    patched.setattr(FanOut, "catch_up", lambda *_: 0)


def _without_catching_up_of_crowd(patched: pytest.MonkeyPatch) -> None:
    _limit_writes(patched, 1, 0)
    patched.setattr(FanOut, "catch_up", lambda *_: 0)


def _without_lingering_sink(patched: pytest.MonkeyPatch) -> None:
    remove = Connection.remove_subscription

    def remove_at_once(self: Connection, sid: int) -> None:
        remove(self, sid)
        self.sinks.pop(b"%d" % sid, None)

    patched.setattr(Connection, "remove_subscription", remove_at_once)


def _without_groups(patched: pytest.MonkeyPatch) -> None:
    patched.setattr(PatternSet, "overlapping", lambda *_: 0)


def _with_old_routes(patched: pytest.MonkeyPatch) -> None:
    def update(self: QueueGroups, interest: Interest) -> None:
        if interest.number is not None:
            bit = 1 << interest.number
            self._shown = self._shown | bit if interest.views else self._shown & ~bit

    patched.setattr(QueueGroups, "update", update)


def _with_one_receiver(patched: pytest.MonkeyPatch) -> None:
    route = QueueGroups.route
    patched.setattr(QueueGroups, "route", lambda *of: route(*of)[:1])


FAULTS = (
    _without_lingering_sink,
    _without_groups,
    _with_old_routes,
    _with_one_receiver,
    _without_catching_up,
    _without_catching_up_of_crowd,
)


@pytest.mark.parametrize("fault", FAULTS)
async def test_walk_finds_fault(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        await _walks()


async def _walks() -> None:
    for seed in SEEDS:
        await Walk(seed).run(1500)
