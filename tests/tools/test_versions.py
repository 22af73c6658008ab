import sys
import tomllib

import pytest

from tools import versions
from tools.versions import ENVIRONMENTS, ROOT, TESTS, lowest, main


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = lowest(project["dependencies"])
    assert "nats-py==2.12" in constraints
    assert len(constraints) == len(project["dependencies"])


def test_dependency_without_lower_bound_is_an_error() -> None:
    assert lowest(["a-b[c,d]>=1.2,<3"]) == ["a-b==1.2"]
    with pytest.raises(ValueError, match="sanic has no lower bound"):
        lowest(["sanic"])


@pytest.mark.parametrize("pattern", TESTS)
def test_every_pattern_finds_tests(pattern: str) -> None:
    assert list(ROOT.glob(pattern))


def test_supported_versions_of_python_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: 3."
    declared = {each.removeprefix(prefix) for each in project["classifiers"] if each.startswith(prefix)}
    assert {name.partition("-")[0].removeprefix("3.") for name in ENVIRONMENTS} == declared


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ({"3.11-lowest": "passed", "3.11-newest": "not installed"}, 0),
        ({"3.11-lowest": "passed", "3.11-newest": "failed"}, 1),
        ({"3.11-lowest": "not installed"}, 1),
    ],
)
def test_status_is_0_only_if_tests_ran_and_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcomes: dict[str, str], status: int
) -> None:
    monkeypatch.setattr(versions, "_outcome", lambda version, choice: outcomes[f"{version}-{choice}"])
    monkeypatch.setattr(sys, "argv", ["versions", *outcomes])
    assert main() == status
    assert capsys.readouterr().out == "".join(f"{name}: {outcome}\n" for name, outcome in outcomes.items())


def test_unknown_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["versions", "2.7-lowest"])
    assert main() == 2
    assert "unknown: 2.7-lowest" in capsys.readouterr().err
