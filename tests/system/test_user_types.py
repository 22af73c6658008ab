"""The types of the public API, as ``mypy --strict`` sees them in an app."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docs import ROOT, file_of

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
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "source", [pytest.param(file_of("README.md", "server.py"), id="README"), pytest.param(FACTORY, id="factory")]
)
def test_mypy_accepts_example_apps(source: str, tmp_path: Path) -> None:
    assert mypy(source, tmp_path) == (0, "Success: no issues found in 1 source file\n")


def test_mypy_rejects_wrong_or_unknown_setting(tmp_path: Path) -> None:
    status, output = mypy(WRONG, tmp_path)
    assert status == 1
    assert "app.py:5: error" in output
    assert "app.py:6: error" in output
