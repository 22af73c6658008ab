"""Every command, file, script and configuration in the documents is run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docs import PAGES, ROOT, Story, blocks, python_files


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_page_examples_run_as_documented(page: str, tmp_path: Path) -> None:
    Story(page, tmp_path).run()


def test_mypy_accepts_python_code_of_all_pages(tmp_path: Path) -> None:
    for page in PAGES:
        files = python_files(page)
        for name, text in files.items():
            # All in one folder, each under a name of its own.
            prefix = re.sub(r"\W", "_", page)
            for other in files:
                text = text.replace(f"from {Path(other).stem} import", f"from {prefix}_{Path(other).stem} import")
            (tmp_path / f"{prefix}_{name}").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir=cache", *sorted(map(str, tmp_path.iterdir()))]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    checked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_at_most_three_blocks_are_skipped_each_with_reason() -> None:
    all_blocks = [block for page in PAGES for block in blocks(page)]
    reasons = [block.how.removeprefix("not run: ") for block in all_blocks if "not run" in block.how]
    assert all(reasons)
    assert len(reasons) <= 3
