"""Small runs of the faults under clients that publish, against real servers. No test checks a time."""

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from tests.tools.test_faults_streams import call
from tools.faults.bridge import CONSTANTS
from tools.faults.catalogue import CATALOGUE
from tools.faults.publishes.catalogue import PUBLISH_FAULTS
from tools.faults.publishes.drills import PUBLISH_DRILLS, PUBLISHES_CONTROL
from tools.faults.publishes.environment import PublishEnvironment
from tools.faults.report import publishes_table
from tools.faults.results import Results, Run

# The others have clusters of servers, or wait for long.
LANE = ["publish_kill", "publish_worker_kill", "publish_client_cut"]
NAMES = [fault.name for fault in PUBLISH_DRILLS] if "TOOLS_IN_FULL" in os.environ else LANE
DOCS = Path(__file__).parents[2] / "docs" / "internals"
SMALL = ("--small", "--rounds", "1")


async def do_nothing(_: PublishEnvironment) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("name", NAMES)
def test_each_acknowledged_publish_is_stored_once(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, *SMALL) == 0, capsys.readouterr().out


def test_clients_that_repeat_without_an_id_are_found_storing_messages_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    assert call(monkeypatch, PUBLISHES_CONTROL.name, *SMALL, "--docs", str(tmp_path)) == 0, capsys.readouterr().out
    (run,) = Results.load(tmp_path / "reliability" / "results.json").runs
    assert run.verdict.duplicate == run.verdict.broken == run.publishes["doubled"] > 0
    assert run.publishes["dropped"] == 0
    assert f"| {PUBLISHES_CONTROL.name} | {run.publishes['publishes']} |" in (tmp_path / "reliability.md").read_text()


def test_command_fails_if_control_run_of_publishes_stores_no_message_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CATALOGUE, PUBLISHES_CONTROL.name, dataclasses.replace(PUBLISHES_CONTROL, inject=do_nothing))
    assert call(monkeypatch, PUBLISHES_CONTROL.name, *SMALL) == 1
    assert "clients without ids stored 0 again" in capsys.readouterr().out


def test_bridge_that_sends_no_ids_and_another_author_fails_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cut,) = (fault for fault in PUBLISH_DRILLS if fault.name == "publish_client_cut")
    broken = {
        CONSTANTS: {"sanic_nats_bridge.auth.publish_policy._MESSAGE_ID_HEADER": "Other-Id"},
        "identity_header": "Author",
    }
    monkeypatch.setitem(CATALOGUE, cut.name, dataclasses.replace(cut, settings=broken))
    assert call(monkeypatch, cut.name, *SMALL) == 1
    written = capsys.readouterr().out
    assert "doubled: " in written
    assert "author: " in written


def test_fault_after_which_nothing_is_repeated_fails_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (kill,) = (fault for fault in PUBLISH_DRILLS if fault.name == "publish_kill")
    monkeypatch.setitem(CATALOGUE, kill.name, dataclasses.replace(kill, inject=do_nothing))
    assert call(monkeypatch, kill.name, *SMALL) == 1
    assert "no client has repeated a publish that was stored" in capsys.readouterr().out


def test_last_fault_under_publishes_is_only_one_without_ids() -> None:
    assert [fault.name for fault in PUBLISH_FAULTS if fault.blind] == [PUBLISHES_CONTROL.name]
    assert PUBLISH_FAULTS[-1] is PUBLISHES_CONTROL


def test_table_shows_publishes_of_all_rounds() -> None:
    run = Run("publish_kill", 0, publishes={"publishes": 1000, "acknowledged": 990, "stored_once": 990, "dropped": 7})
    results = Results({}, [run, dataclasses.replace(run, round=1), Run("kill", 0)])
    assert publishes_table(results).rows == [("publish_kill", "2,000", "1,980", "1,980", "0", "0", "0", "0", "14", "0")]
