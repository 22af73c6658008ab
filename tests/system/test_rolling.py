"""The workers of an app are restarted one after another: clients are sent away, come back spread, and miss nothing."""

import shutil
import sys
from pathlib import Path

import pytest

from tools.faults import __main__ as command_line
from tools.faults.reconnecting_clients import Return
from tools.faults.results import Results, Run
from tools.faults.rolling import judge_returns

DOCS = Path(__file__).parents[2] / "docs" / "internals"


def test_clients_and_subscriptions_survive_a_rolling_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    monkeypatch.setattr(sys, "argv", ["faults", "rolling", "--small", "--rounds", "1", "--docs", str(tmp_path)])
    code = command_line.main()
    assert code == 0, capsys.readouterr().out
    (run,) = Results.load(tmp_path / "reliability" / "results.json").runs
    assert (run.clients, run.recovered, run.verdict.broken) == (240, 240, 0)
    assert run.verdict.delivered
    assert len(run.returns) >= 240
    assert len(run.ends) == 2
    assert run.fullest
    assert "\n| rolling |" in (tmp_path / "reliability.md").read_text().partition("### SessionRegistry that ended")[2]


def returns(*backs: float, told: float | None = 1.0) -> list[Return]:
    return [Return(left=100.0, told=told, back=back) for back in backs]


def judged(returns: list[Return]) -> Run:
    run = Run("rolling", 0)
    judge_returns(returns, 100.0, 2.0, run)
    return run


EVEN = [100.01 + number * 0.02 for number in range(100)]


def test_clients_that_come_back_spread_are_as_they_should_be() -> None:
    run = judged(returns(*EVEN))
    assert run.failures == []
    assert run.fullest == [0.1]
    assert run.returns == pytest.approx([back - 100 for back in EVEN])


def test_clients_that_come_back_at_one_moment_are_found() -> None:
    run = judged(returns(*EVEN, *[101.55] * 30))
    (failure_reply,) = run.failures
    assert failure_reply.startswith("130 clients came back, by tenths of the time: ")
    assert "(7, 40)" in failure_reply


def test_clients_that_are_told_of_one_moment_are_found_however_they_come() -> None:
    run = Run("rolling", 0)
    judge_returns(returns(*EVEN), 100.0, 2.0, run, as_told=True)
    assert run.fullest == [1.0]
    (failure_reply,) = run.failures
    assert failure_reply.startswith("100 clients came back")


@pytest.mark.parametrize("told", [None, 2.001], ids=["untold", "too late"])
def test_clients_that_are_not_told_when_to_come_back_are_found(told: float | None) -> None:
    assert judged(returns(*EVEN, told=told)).failures == [
        "100 of 100 sessions ended without a word of when to come back"
    ]


def test_nothing_is_said_of_how_few_clients_are_spread() -> None:
    run = judged(returns(*[101.0] * 99))
    assert (run.failures, run.fullest) == ([], [])
