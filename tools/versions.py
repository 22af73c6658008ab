"""Tests on the lowest and the newest supported versions of the packages and of Python.

For each supported Python that is installed there are two environments, in ``.versions``: one with the lowest versions
that pyproject.toml allows, and one with the newest that exist. The tests are those of the modules that use private
parts of other packages.

    python -m tools.versions
    python -m tools.versions 3.12-lowest 3.12-newest
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

__all__ = ["ENVIRONMENTS", "TESTS", "lowest", "main"]

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".versions"
PYTHONS = ("3.11", "3.12", "3.13")
ENVIRONMENTS = tuple(f"{python}-{choice}" for python in PYTHONS for choice in ("lowest", "newest"))

TESTS = (
    "tests/unit/nats",
    "tests/unit/transports",
    "tests/unit/test_compatibility.py",
    "tests/integration/test_nats_*.py",
    "tests/integration/test_transports_*.py",
    "tests/integration/test_cluster_*.py",
    "tests/integration/test_routes_events.py",
    "tests/integration/test_routes_websocket.py",
    "tests/integration/test_handshakes.py",
    "tests/integration/test_slow_consumers.py",
    "tests/integration/test_reconnect.py",
    "tests/integration/test_extension.py",
)


def lowest(dependencies: list[str]) -> list[str]:
    """Return constraints for the lowest versions that the dependencies allow.

    Raises:
        ValueError: A dependency has no lower bound.
    """
    constraints = []
    for dependency in dependencies:
        bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", dependency)
        if bound is None:
            raise ValueError(f"{dependency} has no lower bound")
        constraints.append(f"{bound[1]}=={bound[2]}")
    return constraints


def main() -> int:
    """Run the tests in the named environments, or in all; return the status for the shell."""
    wanted = sys.argv[1:] or list(ENVIRONMENTS)
    unknown = set(wanted) - set(ENVIRONMENTS)
    if unknown:
        sys.stderr.write(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}\n")
        return 2
    outcomes = {name: _outcome(*name.split("-")) for name in wanted}
    sys.stdout.write("".join(f"{name}: {outcome}\n" for name, outcome in outcomes.items()))
    ran = [outcome for outcome in outcomes.values() if outcome != "not installed"]
    return 0 if ran and all(outcome == "passed" for outcome in ran) else 1


def _outcome(version: str, choice: str) -> str:
    python = shutil.which(f"python{version}")
    if python is None or _run(python, "--version", quiet=True):
        return "not installed"
    folder = FOLDER / f"{version}-{choice}"
    constraints = folder / "constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if _run(python, "-m", "venv", "--clear", folder):
        return "failed to make its environment"
    constraints.write_text("\n".join(lowest(project["dependencies"])) if choice == "lowest" else "")
    if _run(folder / "bin/pip", "install", "--quiet", "--editable", ".[dev]", "--constraint", constraints):
        return "failed to install"
    files = [path.relative_to(ROOT) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    failed = _run(folder / "bin/python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", *files)
    return "failed" if failed else "passed"


def _run(*command: str | Path, quiet: bool = False) -> int:
    """Run a command in the project's folder and return its status."""
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=quiet).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
