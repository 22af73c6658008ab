"""The rule of the table of attacks, and its measures, applied to made-up observations."""

import math

import pytest

from tools.abuse.attack import Attack
from tools.abuse.attacker import Attacker
from tools.abuse.harm import DELAY, amount, each, rate, ratio
from tools.abuse.results import Observation, Run, Seen, seen
from tools.abuse.verdict import failures

PAGES = amount("pages", "pages", 3)
COUNTED = Attack("counted", "means", Attacker, PAGES)
DELAYED = Attack("delayed", "means", Attacker)
BUILT_IN = Attack("built-in", "means", Attacker, PAGES, built_in="reason")
UNBOUNDED = Attack("unbounded", "means", Attacker, PAGES, bounds=())


def observation(p99: float | None = 1.0, *, lost: int = 0, disconnects: int = 0, **facts: float) -> Observation:
    quiet, attacked = Seen(100, 0, 0.5, 1.0, 1.0), Seen(100, lost, 0.5, p99, p99 or 0.0, disconnects)
    return Observation(quiet, attacked=attacked, facts=facts)


def broken(attack: Attack, bounded: Observation, control: Observation | None) -> list[str]:
    return list(failures(attack, [Run(attack.name, 0, bounded, control)]))


def test_harm_without_limits_and_none_with_limits_keeps_rule() -> None:
    assert broken(COUNTED, observation(pages=2), observation(pages=3)) == []
    assert broken(DELAYED, observation(99), observation(100)) == []
    assert broken(BUILT_IN, observation(pages=2), None) == []


def test_harm_with_limits_breaks_rule() -> None:
    assert broken(COUNTED, observation(pages=3), observation(pages=4)) == ["with limits: pages: 3"]
    expected = ["with limits: p99, as a multiple of the quiet time's: 5.0"]
    assert broken(DELAYED, observation(100), observation(100)) == expected
    assert broken(COUNTED, observation(100, pages=0), observation(pages=4)) == expected
    assert broken(UNBOUNDED, observation(100, pages=0), observation(pages=4)) == []


def test_control_run_without_harm_breaks_rule() -> None:
    assert broken(COUNTED, observation(pages=0), observation(pages=2)) == ["without limits no harm is seen: pages: 2"]


def test_lost_messages_and_disconnects_with_limits_break_rule() -> None:
    bounded = observation(lost=1, disconnects=2)
    assert broken(COUNTED, bounded, observation(lost=50, disconnects=9, pages=3)) == [
        "with limits: 1 of 100 messages lost",
        "with limits: an honest client was disconnected 2 times",
    ]
    bounded = observation()
    bounded.onset = Seen(10, 1)
    assert broken(COUNTED, bounded, observation(pages=3)) == ["with limits: 1 of 10 messages lost"]


def test_error_of_run_breaks_rule() -> None:
    error = Observation(error="OSError: gone")
    assert broken(COUNTED, error, observation(pages=3)) == ["with limits, round 0: OSError: gone"]
    assert broken(COUNTED, observation(), error) == ["without limits, round 0: OSError: gone"]


def test_median_of_rounds_counts() -> None:
    runs = [Run("counted", number, observation(pages=pages), None) for number, pages in enumerate((9, 1, 2))]
    assert list(failures(COUNTED, runs)) == []


def test_tiny_attack_is_judged_by_counts_with_limits_only() -> None:
    runs = [Run("counted", 0, observation(10_000, pages=0), observation(pages=0))]
    assert list(failures(COUNTED, runs, small=True)) == []
    runs = [Run("counted", 0, observation(10_000, pages=3), observation(pages=0))]
    assert list(failures(COUNTED, runs, small=True)) == ["with limits: pages: 3"]


def test_delay_is_compared_with_quiet_time_but_not_with_less_than_20_milliseconds() -> None:
    assert DELAY.of(observation(60)) == 3
    slow = observation(300)
    slow.quiet.p99 = 100.0
    assert DELAY.of(slow) == 3


def test_lost_messages_are_late() -> None:
    assert math.isinf(DELAY.of(observation(None)))
    assert DELAY.formatted(math.inf) == "∞"


def test_measures_are_derived_from_facts() -> None:
    found = observation(memory=4096, connections=2, seconds=4, bytes=30, **{"quiet bytes": 20})
    assert amount("", "memory", 1).of(found) == 4096
    assert amount("", "nothing", 1).of(found) == 0
    assert each("", "memory", "connections", 1, 1024).of(found) == 2
    assert each("", "memory", "nothing", 1).of(found) == 4096
    assert rate("", "memory", 1).of(found) == 1024
    assert ratio("", "bytes", 1).of(found) == 1.5


@pytest.mark.parametrize(
    ("delays", "p50", "p99"),
    [
        (range(100), 50, 99),
        (range(99), 50, None),
        (range(50), None, None),
        ([], None, None),
    ],
)
def test_quantiles_are_those_of_all_published_messages(delays: range, p50: float | None, p99: float | None) -> None:
    found = seen(100, list(reversed(delays)))
    assert (found.lost, found.p50, found.p99) == (100 - len(delays), p50, p99)
    assert found.longest == max(delays, default=0)
