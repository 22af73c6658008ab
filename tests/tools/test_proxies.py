"""The tool that measures proxies: its set-ups, its command line and its report."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tools.proxies import __main__ as command_line
from tools.proxies.catalogue import CATALOGUE
from tools.proxies.record import Received
from tools.proxies.report import messages_table, quiet_table, setups_table, statuses_table, tabs_table
from tools.proxies.results import LinkResult, Results, SetupResult
from tools.proxies.setup import Program
from tools.proxies.tabs import ranked
from tools.proxies.verdict import Verdict

DOCS = Path(__file__).parents[2] / "docs" / "internals"
TOOL = Path(command_line.__file__).parent
PLACEHOLDERS = {"PORT", "TARGET", "FOLDER", "CONFIGURATION", "CERTIFICATE", "KEY", "BOTH", "NODE", "USER"}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["proxies", *arguments])
    return command_line.main()


def test_set_ups_are_measured_judged_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "proxies.md", tmp_path)
    settings = '{"heartbeat": 1}'
    options = ("--seconds", "10", "--patience", "120", "--leave", "1", "--settings", settings, "--docs", str(tmp_path))
    code = call(monkeypatch, "pass", "ws-403", "other-host", *options)
    results = Results.load(tmp_path / "proxies" / "results.json")
    assert [result.setup for result in results.setups] == ["pass", "ws-403", "other-host"]
    assert code == 0, capsys.readouterr().out
    passed, refused, lost = (result.links["busy"].received for result in results.setups)
    assert all(each.count for each in passed.values())
    assert [each.count > 0 for each in refused.values()] == [True, True, False]
    assert [each.count for each in lost.values()] == [0, 0, 0]
    assert results.setups[0].sessions.keys() == results.setups[0].gone.keys()
    assert len(results.setups[0].sessions) == 6
    written = (tmp_path / "proxies.md").read_text()
    assert all(f"\n| {result.setup} |" in written for result in results.setups)


def test_unknown_set_up_is_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "carrier-pigeon")
    assert "no such set-up: carrier-pigeon" in capsys.readouterr().err


def test_list_option_prints_every_set_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CATALOGUE)


@pytest.mark.parametrize("name", CATALOGUE)
def test_name_is_token_of_subject(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", name)


def test_every_configuration_is_used_and_filled() -> None:
    files = {path.name: path.read_text() for path in (TOOL / "configurations").iterdir()}
    assert {setup.configuration for setup in CATALOGUE.values()} - {""} == files.keys()
    programs = [setup.proxy for setup in CATALOGUE.values() if isinstance(setup.proxy, Program)]
    used = " ".join([*files.values(), *(argument for each in programs for argument in each.arguments)])
    assert set(re.findall("@([A-Z]+)@", used)) == PLACEHOLDERS


def test_every_node_script_is_used_and_its_package_is_installed_on_demand() -> None:
    packages = {
        setup.proxy.package
        for setup in CATALOGUE.values()
        if isinstance(setup.proxy, Program) and setup.source == "node"
    }
    assert {path.stem for path in (TOOL / "node").glob("*.js")} == packages
    assert packages <= set(re.findall(r'"([\w-]+)": "', (TOOL / "node" / "package.json").read_text()))


def made_up(setup: str, *failures: str) -> SetupResult:
    received = {
        "client": Received(first=0.31, count=90, pause=2.04, goes_on=True, frames=5, ends=1),
        "eventsource": Received(first=0.2, count=100, pause=0.5, goes_on=True, frames=5),
        "websocket": Received(),
    }
    statuses = [
        "0.1 | connecting | websocket",
        "0.2 | connecting | sse | websocket: 1006",
        "0.3 | connected | sse",
        "0.4 | ready",
    ]
    link = LinkResult(100, received, statuses, Verdict(compared=100, missed=10, failures=list(failures)))
    links = {"tab 1": link} if CATALOGUE[setup].tabs else {"busy": link, "quiet": link}
    gone = {"busy.client": 0.5, "quiet.client": None}
    return SetupResult(setup, "1.2", "http/1.1", "", links, dict.fromkeys(gone, 1), gone, list(failures))


def test_tables_show_values_of_all_receivers_and_broken_rule() -> None:
    missing = SetupResult("hitch-proxy", page="HTTP 400")
    results = Results({}, [made_up("pass"), made_up("nginx", "busy: 5 messages"), missing, made_up("tabs")])
    cells = ("0.3 / 0.2 / -", "90 / 100 / 0", "100", "10", "2.0 / 0.5 / -", "yes / yes / no", "sse")
    messages = messages_table(results)
    assert messages.rows[:2] == [("pass", *cells, "kept"), ("nginx", *cells, "**broken**")]
    assert messages.rows[2][-1] == "the page doesn't load"
    assert messages.notes == ["BROKEN: nginx, busy: 5 messages", "hitch-proxy: HTTP 400"]
    assert quiet_table(results).rows[0] == (
        "pass", "5 / 5 / 0", "1 / 0 / 0", "90 / 100 / 0", "100", "2", "not: quiet.client",
    )  # fmt: skip
    assert tabs_table(results).rows == [
        ("tabs", "1", "0.3 / 0.2", "90 / 100", "100", "0.3 · connected · sse", "kept"),
    ]
    assert setups_table(results).rows[1][:2] == ("nginx", "nginx-light 1.2")
    assert "connecting · sse · websocket: 1006<br>" in statuses_table(results).rows[0][1]


def test_saved_results_load_unchanged(tmp_path: Path) -> None:
    results = Results({"CPU": "made up"}, [made_up("pass"), made_up("tabs", "x")])
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_command_fails_if_rule_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line._report(Results({}, [made_up("pass")]), None) == 0
    assert command_line._report(Results({}, [made_up("pass"), made_up("nginx", "x")]), None) == 1
    assert "The rule is broken in 1 of 2 set-ups." in capsys.readouterr().out


def test_report_lists_every_set_up() -> None:
    written = (DOCS / "proxies.md").read_text()
    assert [name for name in CATALOGUE if f"\n| {name} |" not in written] == []


def test_report_shows_stored_results(tmp_path: Path) -> None:
    shutil.copy(DOCS / "proxies.md", tmp_path)
    command_line._report(Results.load(DOCS / "proxies" / "results.json"), tmp_path)
    assert (tmp_path / "proxies.md").read_text() == (DOCS / "proxies.md").read_text()


def test_tabs_are_compared_by_their_messages() -> None:
    assert ranked([(9, 9), (8, 8), (0, 0)]) == [(0, 0), (1, 1), (2, 2)]
    assert ranked([(0, 9), (8, 8), (7, 0)]) == [(0, 2), (1, 0), (2, 1)]
