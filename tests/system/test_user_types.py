"""The types of the public API, as ``mypy --strict`` sees them in an app."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"

WRONG = """
from sanic import Sanic
from sanic_nats_bridge import NatsBridge

NatsBridge(Sanic("shop"), subscribe=1)
NatsBridge(Sanic("shop"), nonsense=True)
"""

FACTORY = """
from typing import Any

from sanic import Sanic
from sanic_nats_bridge import NatsBridge, Session

bridge = NatsBridge(subscribe=["orders.>"])


def create_app() -> Sanic[Any, Any]:
    app = Sanic("shop")
    bridge.init_app(app)
    return app


async def sign_out(user: str) -> int:
    return await bridge.revoke(identity=user)


def names(session: Session) -> tuple[str, ...]:
    return session.subscriptions
"""


def mypy(source: str, folder: Path) -> tuple[int, str]:
    (folder / "app.py").write_text(source)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(folder / "cache"),
        "app.py",
    ]
    # By its source, because mypy doesn't follow an editable install; an installed package needs neither option.
    environment = os.environ | {"MYPYPATH": str(README.parent)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def first_lines() -> str:
    """Return README's first lines of an app, without the handlers, which README shows without annotations."""
    block = re.findall(r"```python\n(from sanic import.*?NatsBridge\(app.*?\n)\n", README.read_text(), re.DOTALL)[0]
    return str(block)


@pytest.mark.parametrize("source", [pytest.param(first_lines(), id="README"), pytest.param(FACTORY, id="factory")])
def test_mypy_accepts_an_app(source: str, tmp_path: Path) -> None:
    assert mypy(source, tmp_path) == (0, "Success: no issues found in 1 source file\n")


def test_mypy_rejects_a_setting_that_is_wrong(tmp_path: Path) -> None:
    status, output = mypy(WRONG, tmp_path)
    assert status == 1
    assert "app.py:5: error" in output
    assert "app.py:6: error" in output
