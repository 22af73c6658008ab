"""Event streams that tabs share, when tabs are suspended: share.js in simulated tabs, whose order of events is chosen.

``SHARED_WALKS=50000 python -m pytest tests/browser/test_client_share.py`` makes so many random runs. A run is repeated
by its seed: ``node tests/support/node/shared_walks.js sanic_nats_bridge/browser/share.js <seed> 1``.
"""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.node_program import NODE

MODULE = Path(__file__).parents[2] / "sanic_nats_bridge" / "browser" / "share.js"

WALKS: Final = int(os.environ.get("SHARED_WALKS", "1000"))
MOST_WALKS_TO_FAULT: Final = 10_000


def run_node(name: str, *arguments: object) -> list[Any]:
    """Return what the program prints, as JSON."""
    node = shutil.which("node")
    assert node is not None, "make test installs node"
    command = [node, str(NODE / name), str(MODULE), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def simulated(body: str) -> Any:
    (result,) = run_node("simulate.js", body)
    return result


def test_tabs_get_messages_once_and_in_order_in_random_runs() -> None:
    first = random.randrange(2**31)
    assert run_node("shared_walks.js", first, WALKS) == []


# Each with a seed that is soon followed by one that shows the fault. Few do for the last line.
@pytest.mark.parametrize(
    ("line", "first"),
    [
        ("if (term < this.#term) return;", 1),
        ("!this.#isJoined || ", 1),
        ("this.#listener.endSession();", 1),
        ("if (term !== this.#term) return;", 7_860),
    ],
)
def test_random_runs_find_fault_without(line: str, first: int) -> None:
    assert len(run_node("shared_walks.js", first, MOST_WALKS_TO_FAULT, line)) == 1


IS_SUSPENDED = """
  for (let index = 0; index < 3; index++) world.open();
  await world.publish(2000);
  const [leader] = world.leaders;
  leader.suspend();
  await world.publish(16_000);
"""
"""The leader is suspended until another tab leads."""

ALL_CURRENT = "world.tabs.every(({ isClosed, isCurrent }) => isClosed || isCurrent)"


def test_woken_leader_sends_nothing_and_follows_its_successor() -> None:
    assert simulated(f"""
      {IS_SUSPENDED}
      const successor = world.leaders.find((tab) => tab !== leader);
      const before = world.posts.length;
      leader.wake();
      await world.publish(1000);
      return [
        world.posts.slice(before).filter(({{ tab, data }}) => tab === leader && !data.from),
        world.leaders.map((tab) => tab === successor),
        world.tabs.map(({{ gaps }}) => gaps),
        {ALL_CURRENT},
        world.faults,
      ];
    """) == [[], [True], [2, 2, 2], True, []]


def test_woken_leader_shows_nothing_of_its_old_stream() -> None:
    # Its successor's announcement comes later than all that its old stream has.
    assert simulated(f"""
      world.delay = ({{ kind, to }}) => (kind === "channel" && to?.isSuspended ? 60_000 : 10);
      {IS_SUSPENDED}
      const shown = leader.log.length;
      leader.wake();
      await world.publish(60_000);
      return [leader.log[shown], leader.gaps, {ALL_CURRENT}, world.faults];
    """) == ["gap", 2, True, []]


def test_woken_leader_without_successor_loses_nothing() -> None:
    assert simulated(f"""
      const [leader] = [world.open(), world.open()];
      await world.publish(2000);
      leader.suspend();
      await world.publish(4000);
      leader.wake();
      await world.publish(2000);
      return [world.tabs.map(({{ gaps }}) => gaps), {ALL_CURRENT}, world.faults];
    """) == [[1, 1], True, []]


def test_messages_of_a_leader_that_come_after_its_successor_are_dropped() -> None:
    # They were sent before the leader was suspended, but take longer than it takes to replace it.
    assert simulated("""
      let late = 10;
      let follower;
      const leader = world.open();
      world.delay = ({ kind, from, to }) => (kind === "channel" && from === leader && to === follower ? late : 10);
      await world.publish(1000);
      follower = world.open();
      world.open();
      await world.publish(1000);
      late = 30_000;
      await world.publish(1000);
      leader.suspend();
      await world.publish(60_000);
      const [first, ...others] = world.tabs;
      return [others.map(({ gaps }) => gaps), others.every(({ isCurrent }) => isCurrent), world.faults];
    """) == [[2, 2], True, []]


def test_announcement_of_a_leader_that_comes_after_its_successor_is_ignored() -> None:
    assert simulated("""
      let late = 10;
      let second, third;
      world.delay = ({ kind, from, to }) => (kind === "channel" && from === second && to === third ? late : 10);
      const first = world.open();
      await world.publish(1000);
      second = world.open();
      await world.publish(1000);
      third = world.open();
      world.open();
      await world.publish(1000);
      late = 60_000;
      first.close();
      await world.publish(5000);
      const leadsNext = world.leaders[0] === second;
      second.suspend();
      await world.publish(40_000);
      const { gaps } = third;
      second.wake();
      await world.publish(60_000);
      return [leadsNext, world.numbers, world.leaders.includes(second), third.gaps - gaps, world.faults];
    """) == [True, [1, 2, 3], False, 0, []]


def test_leader_is_followed_that_has_the_number_of_a_closed_one() -> None:
    # The closed one was gone before anything that it had sent arrived.
    assert simulated("""
      let late = 10;
      let second;
      world.delay = ({ kind, from }) => (kind === "channel" && from === second ? late : 10);
      const first = world.open();
      await world.publish(1000);
      second = world.open();
      await world.publish(1000);
      const others = [world.open(), world.open()];
      await world.publish(1000);
      late = 5000;
      first.close();
      await world.publish(200);
      const leadsNext = world.leaders[0] === second;
      second.close();
      await world.publish(20_000);
      const gaps = others.map((tab) => tab.gaps);
      return [leadsNext, world.numbers, gaps, others.every(({ isCurrent }) => isCurrent), world.faults];
    """) == [True, [1, 2], [2, 2], True, []]


def test_one_of_two_tabs_leads_that_take_over_at_once() -> None:
    assert simulated("""
      world.delay = () => 10;
      world.random = () => 0.5; // both wait for as long before they join again
      const leader = world.open();
      await world.publish(2000);
      const others = [world.open(), world.open()];
      await world.publish(2000);
      leader.suspend();
      await world.publish(30_000);
      return [world.numbers, world.leaders.length, others.every(({ isCurrent }) => isCurrent), world.faults];
    """) == [[1, 2], 2, True, []]


def test_tab_that_opens_while_the_leader_is_suspended_takes_over() -> None:
    assert simulated(f"""
      const leader = world.open();
      await world.publish(2000);
      leader.suspend();
      const late = world.open();
      await world.publish(14_000); // client.js waits for longer
      const leads = world.leaders.includes(late);
      leader.wake();
      await world.publish(1000);
      return [leads, world.leaders.length, {ALL_CURRENT}, world.faults];
    """) == [True, 1, True, []]


def test_leader_that_is_suspended_without_a_connection_is_replaced() -> None:
    assert simulated("""
      const leader = world.open();
      await world.publish(2000);
      const others = [world.open(), world.open()];
      await world.publish(2000);
      [...world.streams][0].cut();
      await world.run(500);
      leader.suspend();
      const states = others.map(({ state }) => state);
      await world.publish(30_000);
      return [states, world.leaders.length, others.every(({ isCurrent }) => isCurrent), world.faults];
    """) == [["waiting", "waiting"], 1, True, []]


def test_commands_to_a_suspended_or_closed_leader_are_answered() -> None:
    assert simulated("""
      const first = world.open();
      await world.publish(2000);
      const [second, third] = [world.open(), world.open()];
      await world.publish(2000);
      third.answers.length = 0;
      first.suspend();
      third.send();
      await world.publish(30_000);
      const answers = third.answers.splice(0);
      const leader = world.leaders.find((tab) => tab !== first);
      const other = leader === second ? third : second;
      other.answers.length = 0;
      leader.close();
      other.send();
      await world.publish(2000);
      return [answers, other.answers, world.tabs.map(({ pending }) => pending.size)];
    """) == [["disconnected", True], ["disconnected", True], [0, 0, 0]]


LEAVES_LOCK = """
  const first = world.open();
  await world.publish(1000);
  const second = world.open();
  await world.publish(1000);
  world.open();
  await world.publish(1000);
  first.close();
"""
"""The leader is gone, and the second tab gets its lock."""


def test_tab_is_not_connected_before_the_next_leader_answers() -> None:
    assert simulated(f"""
      {LEAVES_LOCK}
      while (!world.numbers.includes(2)) await world.run(1);
      second.suspend();
      await world.publish(1000);
      const third = world.tabs[2];
      const {{ state }} = third;
      await world.publish(14_000);
      return [state, world.numbers, third.isCurrent, world.faults];
    """) == ["connecting", [1, 2, 3], True, []]


def test_tab_that_gets_the_lock_of_an_earlier_leader_follows_the_present_one() -> None:
    assert simulated(f"""
      {LEAVES_LOCK}
      second.suspend();
      const end = world.now + 24_000; // it is awake before messages arrive
      world.delay = ({{ kind, to }}) => (kind === "channel" && to === second ? Math.max(10, end - world.now) : 10);
      await world.publish(20_000); // the third tab leads
      const third = world.tabs[2];
      const fourth = world.open();
      await world.publish(1000);
      third.close();
      await world.publish(1000);
      second.wake();
      await world.publish(5000);
      return [second.clients, world.numbers, world.leaders.map((tab) => tab === fourth), {ALL_CURRENT}, world.faults];
    """) == [0, [1, 2, 3], [True], True, []]


def test_subscriptions_of_a_closed_tab_end_while_an_earlier_leader_is_suspended() -> None:
    assert simulated("""
      const first = world.open();
      await world.publish(2000);
      const others = [world.open(), world.open()];
      await world.publish(2000);
      [...world.streams][0].cut();
      await world.run(500);
      first.suspend();
      await world.publish(30_000);
      const leader = world.leaders.find((tab) => tab !== first);
      const other = others.find((tab) => tab !== leader);
      other.send({ action: "subscribe", subjects: ["a"] });
      await world.publish(1000);
      const patterns = [...leader.patterns];
      other.close();
      await world.publish(1000);
      return [patterns, [...leader.patterns]];
    """) == [["a"], []]


def test_suspended_tab_reads_its_messages_before_it_takes_over() -> None:
    assert simulated(f"""
      const leader = world.open();
      await world.publish(2000);
      const other = world.open();
      await world.publish(2000);
      leader.suspend();
      while (other.state === "connected") await world.publish(10, 10);
      const before = world.posts.length;
      const greets = ({{ tab, data }}) => tab === other && data.from;
      while (!world.posts.slice(before).some(greets)) await world.publish(10, 10);
      other.suspend();
      leader.wake();
      await world.publish(6000);
      world.random = () => 0.99; // timers are read before the leader's answer
      other.wake();
      await world.publish(1000);
      return [world.numbers, {ALL_CURRENT}, world.faults];
    """) == [[1], True, []]


@pytest.mark.parametrize("event", ["freeze", "pagehide"])
def test_page_leaves_the_stream_before_it_is_frozen(event: str) -> None:
    assert simulated(f"""
      const leader = world.open();
      await world.publish(2000);
      const other = world.open();
      await world.publish(2000);
      leader.dispatch("{event}");
      leader.suspend();
      await world.publish(1000);
      const leads = world.leaders.map((tab) => tab === other);
      await world.publish(10_000);
      leader.wake();
      await world.publish(1000);
      return [leads, world.tabs.map(({{ gaps }}) => gaps), {ALL_CURRENT}, world.faults];
    """) == [[True], [2, 2], True, []]


def test_tabs_with_other_messages_have_a_stream_of_their_own() -> None:
    assert simulated(f"""
      const next = source.replace(/VERSION = \\d+/, "VERSION = 1000");
      for (const text of [source, next, source, next]) world.open(text);
      await world.publish(2000);
      const streams = world.leaders.length;
      const [leader] = world.leaders;
      leader.suspend();
      await world.publish(30_000);
      leader.wake();
      await world.publish(2000);
      return [next !== source, streams, world.leaders.length, {ALL_CURRENT}, world.faults];
    """) == [True, 2, 2, True, []]


def test_other_locks_of_the_origin_are_ignored() -> None:
    assert simulated(f"""
      const tab = world.open();
      for (const name of ["stream 2 7 7", "stream 2 x", "other 2 7", "stream 7", "7", ""]) {{
        world.requestLock({{ name, mode: "exclusive", tab, answer() {{}} }});
      }}
      await world.publish(2000);
      return [world.numbers, world.leaders.length, {ALL_CURRENT}];
    """) == [[1], 1, True]
