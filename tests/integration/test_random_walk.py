"""Random walks through all that clients, publishers and NATS do, against the model of `support_model`.

``RANDOM_STEPS=100000 python -m pytest tests/integration/test_random_walk.py`` takes so many steps. Each walk is a
test of its own, whose name holds the seed that it is made of, and the server.
"""

import asyncio
import logging
import os
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from sanic_nats_bridge.hub import fan_out, queue_groups
from tests.support import model
from tests.support.bridge import SERVERS, ServerName
from tests.support.model import CommandName, Follower
from tests.support.walk import World

ALL_STEPS: Final = int(os.environ.get("RANDOM_STEPS", "1500"))
STEPS: Final = 150
# The first example of a walk is always the simplest, so that few walks of many are better.
WALKS: Final = max(len(SERVERS), ALL_STEPS // (30 * STEPS))
STEPS_OF_A_WALK: Final = -(-ALL_STEPS // WALKS)
MOST_PARTS: Final = 20
FEW, MANY = 3, 8
STEPS_BETWEEN_SETTLES: Final = 5
STEPS_BETWEEN_RESTS: Final = 15
STEPS_BETWEEN_CUTS: Final = 30
ALONE: Final = (0, queue_groups._MAX_ALONE)
"""Numbers of patterns that are subscribed without a queue group. The model has too few patterns for the usual one."""

WRITES: Final = ((1, 20_000), (1, 0), (2000, 20_000))
"""Costs of the writes in one turn, and the largest numbers of subscriptions for which a flush is planned at once."""

WHO = st.integers(0, MANY - 1)
OPEN = st.lists(st.sampled_from(model.OPEN), min_size=1, max_size=3)
REFUSABLE = st.just([model.REFUSED_BY_NATS]) | OPEN
ANYTHING = st.sampled_from([*model.OPEN, model.REFUSED_BY_NATS, *model.FORBIDDEN, *model.INVALID])
PATTERNS = st.lists(ANYTHING, max_size=model.MAX_SUBSCRIPTIONS + 1)


def undisturbed(self: "Walk") -> bool:
    return self.world.up and self.steps - self.cut_at > STEPS_BETWEEN_CUTS


class Walk(RuleBasedStateMachine):
    """A random walk through the steps of a world.

    Preconditions must depend only on earlier steps, and never on timing.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, world: World) -> None:
        super().__init__()
        self.loop = loop
        self.world = world
        self.steps = self.settled_at = self.rested_at = self.cut_at = self.back_at = 0
        loop.run_until_complete(world.begin())

    def take(self, step: Coroutine[Any, Any, None]) -> None:
        self.steps += 1
        self.world.steps += 1
        self.loop.run_until_complete(step)
        if not self.world.up and self.steps >= self.back_at:
            self.loop.run_until_complete(self.world.start_nats())
        self.world.judge()

    def follower(self, index: int) -> Follower:
        return self.world.followers[index % len(self.world.followers)]

    @precondition(lambda self: len(self.world.followers) < MANY)
    @rule()
    def open_websocket(self) -> None:
        self.take(self.world.open_websocket())

    @precondition(lambda self: len(self.world.followers) < MANY)
    @rule(patterns=st.just([]) | OPEN)
    def open_event_stream(self, patterns: Sequence[str]) -> None:
        self.take(self.world.open_events(patterns))

    @precondition(lambda self: self.world.followers)
    @rule(who=WHO, patterns=OPEN | OPEN | OPEN | REFUSABLE)
    def subscribe(self, who: int, patterns: Sequence[str]) -> None:
        self.take(self.follower(who).command("subscribe", patterns))

    @precondition(lambda self: self.world.followers)
    @rule(who=WHO, count=st.integers(1, 3))
    def unsubscribe(self, who: int, count: int) -> None:
        follower = self.follower(who)
        self.take(follower.command("unsubscribe", list(follower.held)[:count] or ["a.x"]))

    @precondition(lambda self: self.world.followers)
    @rule(who=WHO, name=st.sampled_from(["subscribe", "unsubscribe"]), patterns=PATTERNS)
    def try_anything(self, who: int, name: CommandName, patterns: Sequence[str]) -> None:
        self.take(self.follower(who).command(name, patterns))

    @precondition(lambda self: len(self.world.followers) > FEW)
    @rule(who=WHO, politely=st.booleans())
    def leave(self, who: int, politely: bool) -> None:
        self.take(self.world.leave(self.follower(who), politely=politely))

    @precondition(lambda self: self.steps % 4 == 0)
    @rule(patterns=OPEN, turns=st.integers(0, 20))
    def crash_in_haste(self, patterns: Sequence[str], turns: int) -> None:
        self.take(self.world.crash_in_haste(patterns, turns))

    @precondition(lambda self: self.world.up)
    @rule(subject=st.sampled_from(model.SUBJECTS), count=st.integers(1, 3))
    def publish(self, subject: str, count: int) -> None:
        self.take(self.world.publish(subject, count))

    @precondition(lambda self: self.world.up and self.steps - self.settled_at > STEPS_BETWEEN_SETTLES)
    @rule()
    def settle(self) -> None:
        self.settled_at = self.steps
        self.take(self.world.settle())

    @precondition(lambda self: self.steps - self.rested_at > STEPS_BETWEEN_RESTS)
    @rule()
    def rest(self) -> None:
        self.rested_at = self.steps
        self.take(self.world.rest())

    @precondition(undisturbed)
    @rule()
    def cut(self) -> None:
        self.cut_at = self.steps
        self.take(self.world.cut())

    @precondition(undisturbed)
    @rule(turns=st.integers(0, 12))
    def cut_twice(self, turns: int) -> None:
        self.cut_at = self.steps
        self.take(self.world.cut_twice(turns))

    @precondition(undisturbed)
    @rule(away=st.integers(1, 20))
    def kill_nats(self, away: int) -> None:
        self.cut_at, self.back_at = self.steps, self.steps + away
        self.take(self.world.kill_nats())

    # What is done most.
    subscribe_again, subscribe_more, unsubscribe_again = subscribe, subscribe, unsubscribe
    publish_again, publish_more, publish_yet_more = publish, publish, publish

    def teardown(self) -> None:
        self.loop.run_until_complete(self.world.end())


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture
def world(
    loop: asyncio.AbstractEventLoop,
    server: ServerName,
    alone: int,
    writes: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    monkeypatch.setattr(queue_groups, "_MAX_ALONE", alone)
    monkeypatch.setattr(fan_out, "_COST_PER_TURN", writes[0])
    monkeypatch.setattr(fan_out, "_MAX_PLANNED", writes[1])
    monkeypatch.setattr(fan_out, "_RESERVE", writes[0] // 4)
    # How long the bridge waits between its attempts to connect is tested elsewhere.
    monkeypatch.setattr("sanic_nats_bridge.nats.server_pool._MAX_BACKOFF_SECONDS", 0.1)
    made = World.made(server)
    yield loop.run_until_complete(made.__aenter__())
    loop.run_until_complete(made.__aexit__(None, None, None))


@pytest.mark.timeout(600 + STEPS_OF_A_WALK)  # one that fails is run twice
@pytest.mark.parametrize(
    ("walk", "server", "alone", "writes"),
    [
        (
            walk,
            SERVERS[walk % len(SERVERS)],
            ALONE[(walk + walk // 2) % len(ALONE)],
            WRITES[(walk + walk // 3) % len(WRITES)],
        )
        for walk in range(WALKS)
    ],
)
def test_random_walk_agrees_with_reference_model(
    walk: int, loop: asyncio.AbstractEventLoop, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for part in range(MOST_PARTS):
        if world.steps < STEPS_OF_A_WALK:
            run(partial(Walk, loop, world), seed_of_it=f"{walk}.{part}", steps=STEPS_OF_A_WALK - world.steps)
    assert world.steps >= STEPS_OF_A_WALK
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def run(machine: Any, seed_of_it: str, steps: int) -> None:
    """Take about so many steps, or fewer: hypothesis ends some examples early."""
    run_state_machine_as_test(
        seed(seed_of_it)(machine),
        settings=settings(
            max_examples=-(-steps // STEPS),
            stateful_step_count=STEPS,
            database=None,
            # What is shrunk is run hundreds of times, and hardly one of these runs is quick.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
