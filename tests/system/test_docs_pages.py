"""Every command, file, script and configuration in the documents is run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docs import PAGES, ROOT, SLOW_SECONDS, Story, blocks


@pytest.fixture(scope="session")
def types_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_page_does_what_it_says(page: str, tmp_path: Path, types_cache: Path) -> None:
    story = Story(page, tmp_path)
    story.run()
    # The app of the README is that of the quickstart.
    if page != "README.md" and any(block.language == "python" for block in blocks(page)):
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            f"--cache-dir={types_cache}",
            *map(str, story.python_files),
        ]
        checked = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"MYPYPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=SLOW_SECONDS * 2,
        )
        assert checked.returncode == 0, checked.stdout


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    all_blocks = [block for page in PAGES for block in blocks(page)]
    reasons = [block.how.removeprefix("not run: ") for block in all_blocks if "not run" in block.how]
    assert all(reasons)
    assert len(reasons) <= 3
