"""Tests of the faults by counts, against real servers. No test checks a time."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.faults import __main__ as command_line
from tools.faults import names
from tools.faults.bridge_faults import CONTROL
from tools.faults.catalogue import CATALOGUE
from tools.faults.checker import Verdict
from tools.faults.names import LIVE, NAME, UNANSWERING, own_hosts
from tools.faults.nats_faults import NATS_FAULTS
from tools.faults.publishes.fault import PublishFault
from tools.faults.report import counts_table, times_table
from tools.faults.results import Results, Run
from tools.faults.run import late_notices
from tools.faults.streams.fault import StreamFault
from tools.harness.tables import write_tables

DOCS = Path(__file__).parents[2] / "docs" / "internals"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["faults", *arguments])
    return command_line.main()


def test_faults_are_injected_checked_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    faults = ["kill", "hiccup", "bytes", "control"]
    code = call(monkeypatch, *faults, "--small", "--rounds", "1", "--docs", str(tmp_path))
    assert code == 0, capsys.readouterr().out
    results = Results.load(tmp_path / "reliability" / "results.json")
    assert [run.fault for run in results.runs] == faults
    kill, hiccup, noise, control = results.runs
    assert (len(kill.noticed), len(kill.first_message_after)) == (1, 1)
    assert (hiccup.noticed, noise.noticed) == ([], [])
    assert {run.recovered for run in results.runs} == {16}
    assert all(run.verdict.delivered for run in results.runs)
    assert control.verdict.lost == control.verdict.broken == control.dropped > 0
    assert {run.verdict.broken for run in (kill, hiccup, noise)} == {0}
    written = (tmp_path / "reliability.md").read_text()
    for name in faults:
        assert f"\n| {name} |" in written


NAMES = (
    [name for name, entry in CATALOGUE.items() if not isinstance(entry, StreamFault | PublishFault)]
    if "TOOLS_IN_FULL" in os.environ
    else ["sigstop"]
)
"""The faults to inject: all in ``make test-tools``."""


@pytest.mark.parametrize("name", NAMES if "TOOLS_IN_FULL" in os.environ else ["sigstop"])
def test_no_message_is_lost_silently(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--small", "--rounds", "1") == 0, capsys.readouterr().out


def test_process_with_own_hosts_file_gets_unanswering_address_first() -> None:
    resolve = f"import socket; print([each[4][0] for each in socket.getaddrinfo({NAME!r}, 1, type=socket.SOCK_STREAM)])"
    with own_hosts() as prefix:
        if prefix is None:
            pytest.skip("no permission to create a mount namespace")
        ran = subprocess.run([*prefix, sys.executable, "-c", resolve], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{[UNANSWERING, LIVE.address]}\n"


@pytest.mark.parametrize("command", ["false", "no-such-command"])
def test_no_process_gets_own_hosts_file_without_permission(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_NAMESPACE_COMMAND", command)
    with own_hosts() as prefix:
        assert prefix is None


def test_late_notice_counts_as_failure() -> None:
    run = Run("kill", 0, noticed=[0.5, 12.0])
    (kill, hiccup) = (fault for fault in NATS_FAULTS if fault.name in ("kill", "hiccup"))
    assert list(late_notices(kill, run)) == ["clients were notified only after 12.0 s"]
    assert list(late_notices(hiccup, run)) == []


def test_command_fails_if_control_run_loses_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The bridge loses no message, so the checker finds none.
    monkeypatch.setitem(CATALOGUE, CONTROL.name, dataclasses.replace(CONTROL, drop_one_in=10**9))
    assert call(monkeypatch, "control", "--small", "--rounds", "1") == 1
    assert "FAILED: the bridge lost 0 copies, the checker found 0" in capsys.readouterr().out


def test_control_run_is_last_and_only_fault_that_drops_messages() -> None:
    assert list(CATALOGUE)[-1] == CONTROL.name
    assert [fault.name for fault in CATALOGUE.values() if fault.drop_one_in] == [CONTROL.name]


def test_tables_show_median_and_worst_times_and_failures() -> None:
    runs = [
        Run(
            "kill",
            number,
            noticed=[time],
            first_message_after=[1.0],
            clients=2,
            recovered=2,
            verdict=Verdict(delivered=600, lost=1),
        )
        for number, time in enumerate((0.5, 4.0, 1.0))
    ]
    runs[1].failures.append("c: silently lost")
    results = Results({"CPU": "made up"}, runs)
    assert times_table(results).rows == [
        ("kill", CATALOGUE["kill"].title, "1.00 (4.00)", "1.00 (1.00)", "6 of 6"),
    ]
    counts = counts_table(results)
    assert counts.rows == [("kill", "1,800", "0", "3", "0", "0", "0", "0", "0", "0")]
    assert counts.notes == ["FAILED: kill, round 1: c: silently lost"]


def test_only_text_between_markers_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text("before\n<!-- measured -->\nold\n<!-- end -->\nafter\n")
    write_tables(document, [counts_table(Results({}))])
    lines = document.read_text().splitlines()
    assert (lines[:2], lines[-2:]) == (["before", "<!-- measured -->"], ["<!-- end -->", "after"])
    assert "old" not in lines


def test_saved_results_load_unchanged(tmp_path: Path) -> None:
    results = Results({"CPU": "made up"}, [Run("kill", 0, noticed=[1.5], verdict=Verdict(lost=1, notes=["x"]))])
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_unknown_fault_is_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "boredom")
    assert "no such fault: boredom" in capsys.readouterr().err


def test_list_option_prints_every_fault(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CATALOGUE)


def test_report_lists_every_fault() -> None:
    written = (DOCS / "reliability.md").read_text()
    assert [name for name in CATALOGUE if f"\n| {name} |" not in written] == []
