"""Small runs of the faults of workers and connections under clients of streams. No test checks a time."""

import os

import pytest

from tests.tools.test_faults_streams import call
from tools.faults.streams.worker_drills import WORKER_DRILLS

LANE = ["streams_backlog", "streams_cut", "streams_lag"]
NAMES = [fault.name for fault in WORKER_DRILLS] if "TOOLS_IN_FULL" in os.environ else LANE


@pytest.mark.parametrize("name", NAMES)
def test_clients_resume_without_silent_loss(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--small", "--rounds", "1") == 0, capsys.readouterr().out
