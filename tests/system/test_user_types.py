"""The types of the public API, as ``mypy --strict`` sees them in an app."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docs import PAGES, ROOT, python_files

WRONG = """
from sanic import Sanic
from sanic_nats_bridge import NatsBridge

NatsBridge(Sanic("shop"), subscribe=1)
NatsBridge(Sanic("shop"), nonsense=True)
"""

FACTORY = """
from typing import Any

from sanic import Sanic
from sanic_nats_bridge import NatsBridge, Session, UpdateResult

bridge = NatsBridge(subscribe=["orders.>"])


def create_app() -> Sanic[Any, Any]:
    app = Sanic("shop")
    bridge.init_app(app)
    return app


async def sign_out(user: str) -> UpdateResult:
    return await bridge.revoke(identity=user)


async def sign_out_one(session: Session) -> bool:
    return (await bridge.revoke(session=session)).announced


def names(session: Session) -> tuple[str, ...]:
    return session.subscriptions
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for what mypy has learned of the packages, so that it reads them only once."""
    return tmp_path_factory.mktemp("mypy")


def mypy(cache: Path, *files: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={cache}", *(file.name for file in files)]
    # By its source, because mypy doesn't follow an editable install; an installed package needs no such path.
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=files[0].parent, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_mypy_accepts_app_factory(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(FACTORY)
    assert mypy(cache, file) == (0, "Success: no issues found in 1 source file\n")


def test_mypy_accepts_python_code_of_all_pages(cache: Path, tmp_path: Path) -> None:
    checked = []
    for page in PAGES:
        files = python_files(page)
        for name, text in files.items():
            # All in one folder, each under a name of its own.
            prefix = re.sub(r"\W", "_", page)
            for other in files:
                text = text.replace(f"from {Path(other).stem} import", f"from {prefix}_{Path(other).stem} import")
            checked.append(tmp_path / f"{prefix}_{name}")
            checked[-1].write_text(text)
    assert "README_md_server.py" in {file.name for file in checked}
    assert mypy(cache, *checked) == (0, f"Success: no issues found in {len(checked)} source files\n")


def test_mypy_rejects_wrong_or_unknown_setting(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "app.py"
    file.write_text(WRONG)
    status, output = mypy(cache, file)
    assert status == 1
    assert "app.py:5: error" in output
    assert "app.py:6: error" in output
