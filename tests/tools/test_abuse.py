"""The tool that attacks the bridge: its attacks, its command line and its report. No test checks a time."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_index import PatternIndex
from sanic_nats_bridge.settings import Settings
from tools.abuse import __main__ as command_line
from tools.abuse.attack import Attack
from tools.abuse.catalogue import CATALOGUE
from tools.abuse.connections import frame
from tools.abuse.limits_off import LIMITS, _replace, _SearchedAllowed, _SearchedProhibitions
from tools.abuse.pattern_attacks import overlapping_patterns
from tools.abuse.report import attacks_table, cost_table, failed_attacks
from tools.abuse.results import Observation, Results, Run, Seen
from tools.harness.tables import Table, write_tables

DOCS = Path(__file__).parents[2] / "docs" / "internals"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["abuse", *arguments])
    return command_line.main()


def test_attacks_are_run_judged_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    attacks = ["rebinding", "forged-control"]
    code = call(monkeypatch, *attacks, "--small", "--seconds", "1", "--docs", str(tmp_path))
    assert code == 0, capsys.readouterr().out
    results = Results.load(tmp_path / "reliability" / "abuse.json")
    assert [run.attack for run in results.runs] == attacks
    for run in results.runs:
        assert run.control is not None
        harm = CATALOGUE[run.attack].harm
        assert harm.shows(harm.of(run.control))
        assert not harm.of(run.bounded)
        assert run.bounded.quiet.published == run.bounded.attacked.published == 100
    written = (tmp_path / "reliability.md").read_text()
    assert all(f"\n| {name} |" in written for name in attacks)


NAMES = list(CATALOGUE) if "TOOLS_IN_FULL" in os.environ else ["overlap-silent"]
"""The attacks to run: all in ``make test-tools``."""


@pytest.mark.parametrize("name", NAMES)
def test_tiny_attack_does_no_harm_that_can_be_counted(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--small", "--seconds", "1") == 0, capsys.readouterr().out


def test_unknown_attack_is_rejected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, "boredom")
    assert "no such attack: boredom" in capsys.readouterr().err


def test_list_option_prints_every_attack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CATALOGUE)


def settings_of(attack: Attack, *, limits: bool) -> Settings:
    return Settings.resolve({**attack.settings, **(attack.limited if limits else attack.unlimited)}, {})


@pytest.mark.parametrize("name", CATALOGUE)
def test_settings_of_attack_are_valid(name: str) -> None:
    attack = CATALOGUE[name]
    settings_of(attack, limits=True)
    settings_of(attack, limits=False)


@pytest.mark.parametrize("name", CATALOGUE)
def test_control_run_differs_from_run_with_limits(name: str) -> None:
    attack = CATALOGUE[name]
    differs = attack.unlimited or attack.limited or attack.lifted or attack.control_attacker
    assert bool(differs) is attack.has_control


def test_every_limit_can_be_removed_and_is_removed_for_an_attack() -> None:
    assert {limit for attack in CATALOGUE.values() for limit in attack.lifted} == LIMITS.keys()
    # In another process, because they stay removed.
    command = "from tools.abuse.limits_off import LIMITS, remove_limits; remove_limits(LIMITS)"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=DOCS.parents[1])


def test_limit_that_does_not_exist_cannot_be_removed() -> None:
    with pytest.raises(AttributeError, match="_MAX_SOMETHING"):
        _replace("hub.queue_groups", "_MAX_SOMETHING", 1)


def test_searched_permissions_decide_as_indexed_ones() -> None:
    permissions = Permissions(subscribe=["a.>", "b.*"], deny=["a.secret.>", "a.*.hidden"])
    searched = Permissions(subscribe=permissions.subscribe, deny=permissions.deny)
    searched.__dict__["_prohibitions"] = _SearchedProhibitions(permissions._patterns["deny"], [])
    index = PatternIndex(permissions.subscribe)
    searched._indexes["subscribe"] = _SearchedAllowed([(index, range(2))])  # type: ignore[assignment]
    for pattern in ("a.b", "a.*.c", "a.secret.x", "a.>", "b.c", "b.>", "c", "a.b.hidden"):
        assert searched.explain(pattern) == permissions.explain(pattern)


def test_overlapping_patterns_match_subject_and_differ() -> None:
    subject = "a.b.c.d.e.f.g.h.i"
    patterns = overlapping_patterns(subject)
    assert len(set(patterns)) == len(patterns) == 2**9 - 2
    assert all(subjects.matches(pattern, subject) for pattern in patterns)
    assert {pattern.count("*") for pattern in patterns[:252]} == {4, 5}
    assert all(pattern[0] == "a" and pattern[-1] == "i" for pattern in overlapping_patterns(subject, fixed=1))


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (frame(b"ab"), b"\x81\x82\0\0\0\0ab"),
        (frame(b"ab", 0, final=False), b"\x00\x82\0\0\0\0ab"),
        (frame(b"a", length=126), b"\x81\xfe\0\x7e\0\0\0\0a"),
        (frame(b"a", length=65_536), b"\x81\xff\0\0\0\0\0\x01\0\0\0\0\0\0a"),
    ],
)
def test_frame_has_length_of_header(sent: bytes, expected: bytes) -> None:
    assert sent == expected


def made_up(attack: str = "rebinding", *, read: float = 0, round_: int = 0) -> Run:
    quiet, attacked = Seen(100, 0, 0.5, 1.25, 2.0), Seen(100, 0, 0.75, 1.5, 3.0)
    lossy = Seen(100, 60, None, None, 4000.0, 1)
    bounded = Observation(quiet, attacked=attacked, facts={"read messages": read})
    control = Observation(quiet, Seen(), lossy, {"read messages": 400.0})
    return Run(attack, round_, bounded, control)


def test_tables_show_quiet_time_control_and_limits() -> None:
    results = Results({"CPU": "made up", "cores": 2}, [made_up()])
    table = cost_table(results)
    assert table.rows == [
        (
            "rebinding",
            CATALOGUE["rebinding"].means,
            "0.5 / lost / 0.8",
            "1.2 / lost / 1.5",
            "2 / 4,000 / 3",
            "0 / 60 % / 0",
            "messages that the page reads",
            "400",
            "0",
        ),
    ]  # fmt: skip
    assert table.notes == ["CPU: made up; cores: 2"]
    (row,) = attacks_table(results).rows
    assert row == ("rebinding", "1", '`allowed_hosts=["127.0.0.1"]`', 'without `allowed_hosts=["127.0.0.1"]`')


def test_table_shows_attack_without_control_and_failed_run() -> None:
    run = made_up("half-heads")
    run.control = None
    failed = Run("rebinding", 0, Observation(error="OSError: gone"), Observation(error="OSError: gone"))
    table = cost_table(Results({}, [failed, run]))
    assert [row[-2:] for row in table.rows] == [("-", "-"), ("-", "0")]
    assert table.rows[0][2] == "- / - / -"
    assert table.notes[0] == "BROKEN: rebinding, with limits, round 0: OSError: gone"


def test_command_fails_and_names_attack_if_rule_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line._report(Results({}, [made_up()]), None) == 0
    kept = made_up("half-heads")
    kept.control = None
    broken = Results({}, [made_up(read=5), kept])
    assert failed_attacks(broken) == ["rebinding"]
    assert command_line._report(broken, None) == 1
    assert "The rule is broken by rebinding." in capsys.readouterr().out


def test_saved_results_load_unchanged(tmp_path: Path) -> None:
    run = made_up()
    run.control = None
    results = Results({"CPU": "made up"}, [made_up(), run])
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_only_section_of_tables_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    text = "<!-- measured -->\nfaults\n<!-- end -->\nbetween\n<!-- abuse -->\nold\n<!-- end -->\nafter\n"
    document.write_text(text)
    write_tables(document, [Table("New", ("a",))], section="abuse")
    assert document.read_text() == text.replace("old\n", "\n### New\n\n| a |\n|---|\n\n")


def test_report_lists_every_attack() -> None:
    written = (DOCS / "reliability.md").read_text()
    assert [name for name in CATALOGUE if f"\n| {name} |" not in written] == []


def test_report_shows_stored_results(tmp_path: Path) -> None:
    shutil.copy(DOCS / "reliability.md", tmp_path)
    command_line._report(Results.load(DOCS / "reliability" / "abuse.json"), tmp_path)
    assert (tmp_path / "reliability.md").read_text() == (DOCS / "reliability.md").read_text()
