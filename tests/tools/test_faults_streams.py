"""Small runs of the faults under clients of streams, against real servers. No test checks a time."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tools.faults import __main__ as command_line
from tools.faults.catalogue import CATALOGUE
from tools.faults.checker import Verdict
from tools.faults.report import counts_table, streams_table
from tools.faults.results import Results, Run
from tools.faults.streams.catalogue import STREAM_FAULTS
from tools.faults.streams.nats_drills import NATS_DRILLS
from tools.faults.streams.worker_drills import STREAMS_CONTROL

# The others have clusters of servers, or wait for long.
LANE = ["streams_kill", "streams_purge", "streams_recreated"]
NAMES = [fault.name for fault in NATS_DRILLS] if "TOOLS_IN_FULL" in os.environ else LANE
DOCS = Path(__file__).parents[2] / "docs" / "internals"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["faults", *arguments])
    return command_line.main()


@pytest.mark.parametrize("name", NAMES)
def test_clients_resume_without_silent_loss(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--small", "--rounds", "1") == 0, capsys.readouterr().out


def test_clients_that_forget_their_ids_are_found_losing_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    options = ("--small", "--rounds", "1", "--docs", str(tmp_path))
    assert call(monkeypatch, STREAMS_CONTROL.name, *options) == 0, capsys.readouterr().out
    (run,) = Results.load(tmp_path / "reliability" / "results.json").runs
    assert run.verdict.lost == run.verdict.broken > 0
    assert run.resumes > 0


def test_command_fails_if_control_run_of_streams_loses_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # No client is cut off, so none misses anything.
    monkeypatch.setitem(CATALOGUE, STREAMS_CONTROL.name, dataclasses.replace(STREAMS_CONTROL, cut_interval=0))
    assert call(monkeypatch, STREAMS_CONTROL.name, "--small", "--rounds", "1") == 1
    assert "clients without ids lost 0" in capsys.readouterr().out


def test_unexpected_gap_fails_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (purge,) = (fault for fault in NATS_DRILLS if fault.name == "streams_purge")
    monkeypatch.setitem(CATALOGUE, purge.name, dataclasses.replace(purge, gaps=frozenset()))
    assert call(monkeypatch, purge.name, "--small", "--rounds", "1") == 1
    assert "false gap: " in capsys.readouterr().out


def test_fault_that_changes_nothing_fails_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (kill,) = (fault for fault in NATS_DRILLS if fault.name == "streams_kill")
    needs = dataclasses.replace(kill, gaps=frozenset({"reset"}), codes=frozenset({"history.unavailable"}))
    monkeypatch.setitem(CATALOGUE, kill.name, needs)
    assert call(monkeypatch, kill.name, "--small", "--rounds", "1") == 1
    written = capsys.readouterr().out
    assert "no client received a gap with the reasons ['reset']" in written
    assert "no subscription has ended" in written


def test_second_control_run_is_only_one_with_forgotten_ids() -> None:
    assert [fault.name for fault in STREAM_FAULTS if fault.forgets] == [STREAMS_CONTROL.name]
    assert STREAM_FAULTS[-1] is STREAMS_CONTROL


def test_tables_show_resumes_and_gaps() -> None:
    run = Run("streams_purge", 0, verdict=Verdict(delivered=10, false_recovered=2, wrong_ids=1))
    run.resumes, run.gaps, run.ended = 1200, {"expired": 3}, 4
    results = Results({}, [run, dataclasses.replace(run, round=1), Run("kill", 0)])
    assert streams_table(results).rows == [("streams_purge", "2,400", "expired: 6", "8")]
    counts = {name: row for name, *row in counts_table(results).rows}
    assert counts["streams_purge"][-2:] == ["4", "2"]


def test_results_of_streams_load_unchanged(tmp_path: Path) -> None:
    results = Results({}, [Run("streams_kill", 0, resumes=3, gaps={"reset": 1}, ended=1)])
    results.save(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["gaps"] == {"reset": 1}
    assert Results.load(tmp_path / "results.json") == results


def test_fault_of_first_round_only_isn_t_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    async def note(name: str, number: int, **_: object) -> Run:
        ran.append((name, number))
        return Run(name, number)

    monkeypatch.setattr(command_line, "_run", note)
    assert call(monkeypatch, "streams_kill", "streams_restarts", "--rounds", "2") == 0
    assert ran == [("streams_kill", 0), ("streams_restarts", 0), ("streams_kill", 1)]
