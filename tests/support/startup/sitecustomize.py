"""Startup code of each Python under test: it lacks some packages, and Sanic's manager reports when it handles signals.

A signal that arrives before the manager has seen all its workers acknowledge makes it loop indefinitely.
"""

import os
import sys
from pathlib import Path
from typing import Any

_modules: dict[str, Any] = sys.modules
for _package in os.environ.get("ABSENT_PACKAGES", "").split():
    _modules[_package] = None

_ready = os.environ.get("MANAGER_READY_FILE")

if _ready:
    from sanic.worker.manager import WorkerManager

    _wait_for_ack = WorkerManager.wait_for_ack

    def _wait_and_report(manager: WorkerManager) -> None:
        _wait_for_ack(manager)  # type: ignore[no-untyped-call]
        Path(str(_ready)).touch()

    WorkerManager.wait_for_ack = _wait_and_report  # type: ignore[method-assign]
