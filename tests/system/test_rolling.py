"""A rolling restart of the workers of an app: clients reconnect spread over time, and miss no message."""

import shutil
import sys
from pathlib import Path

import pytest

from tools.faults import __main__ as command_line
from tools.faults.reconnecting_clients import Reconnect
from tools.faults.results import Results, Run
from tools.faults.rolling import check_reconnects

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
    assert len(run.reconnect_times) >= 240
    assert len(run.shutdown_times) == 2
    assert run.fullest_tenths
    assert "\n| rolling |" in (tmp_path / "reliability.md").read_text().partition("### Sessions that ended")[2]


def reconnects(*times: float, retry: float | None = 1.0) -> list[Reconnect]:
    return [Reconnect(ended=100.0, retry=retry, reconnected=time) for time in times]


def checked(reconnects: list[Reconnect]) -> Run:
    run = Run("rolling", 0)
    check_reconnects(reconnects, 100.0, 2.0, run)
    return run


EVEN = [100.01 + number * 0.02 for number in range(100)]


def test_spread_reconnects_are_not_a_failure() -> None:
    run = checked(reconnects(*EVEN))
    assert run.failures == []
    assert run.fullest_tenths == [0.1]
    assert run.reconnect_times == pytest.approx([time - 100 for time in EVEN])


def test_simultaneous_reconnects_are_detected() -> None:
    run = checked(reconnects(*EVEN, *[101.55] * 30))
    (failure,) = run.failures
    assert failure.startswith("130 clients reconnected, by tenths of the time: ")
    assert "(7, 40)" in failure


def test_identical_retry_times_are_detected() -> None:
    run = Run("rolling", 0)
    check_reconnects(reconnects(*EVEN), 100.0, 2.0, run, by_retry=True)
    assert run.fullest_tenths == [1.0]
    (failure,) = run.failures
    assert failure.startswith("100 clients reconnected")


@pytest.mark.parametrize("retry", [None, 2.001], ids=["none", "too late"])
def test_missing_and_late_retry_times_are_detected(retry: float | None) -> None:
    assert checked(reconnects(*EVEN, retry=retry)).failures == [
        "100 of 100 sessions ended without a valid time to reconnect"
    ]


def test_spread_of_few_clients_is_not_checked() -> None:
    run = checked(reconnects(*[101.0] * 99))
    assert (run.failures, run.fullest_tenths) == ([], [])
