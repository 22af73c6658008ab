import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from sanic_nats_bridge.metrics import worker_files
from sanic_nats_bridge.metrics.worker_files import WorkerFile, WorkerFiles, worker_folder

FOLDER = "_SANIC_NATS_BRIDGE_FOLDER"
HOLD = """
import sys
from pathlib import Path
from sanic_nats_bridge.metrics.worker_files import WorkerFiles
files = WorkerFiles(Path(sys.argv[1]), "app", "w1")
print(files.claim().decode(), flush=True)
files.write(b"other")
print("written", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


@pytest.fixture
def own(folder: Path) -> WorkerFiles:
    files = WorkerFiles(folder, "app", "w0")
    assert files.claim() == b""
    return files


def test_killed_process_is_dead_and_its_file_is_reclaimed(folder: Path, own: WorkerFiles) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"\n", b"written\n"]
        assert list(own.others()) == [WorkerFile("w1", b"other", alive=True)]
        process.kill()
    assert list(own.others()) == [WorkerFile("w1", b"other", alive=False)]
    successor = WorkerFiles(folder, "app", "w1")
    assert successor.claim() == b"other"
    assert list(own.others()) == [WorkerFile("w1", b"other", alive=True)]
    successor.write(b"more")
    assert list(own.others()) == [WorkerFile("w1", b"more", alive=True)]
    assert len(list(folder.iterdir())) == 1
    successor.release()


def test_live_file_is_not_reclaimed_and_apps_are_isolated(folder: Path, own: WorkerFiles) -> None:
    own.write(b"own")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.replace('"w1"', '"w0"'), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert process.stdout.readline() == b"written\n"
        process.communicate()
    assert list(own.others()) == [WorkerFile("w0", b"other", alive=False)]
    stranger = WorkerFiles(folder, "application", "w0")
    assert stranger.claim() == b""
    assert list(stranger.others()) == []
    own.release()


def test_file_being_replaced_is_never_reported_dead(folder: Path, own: WorkerFiles) -> None:
    other = WorkerFiles(folder, "app", "w1")
    other.claim()
    other.write(b"0")
    over = threading.Event()

    def write_on() -> None:
        while not over.is_set():
            other.write(b"0" * 100)

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        seen = [file for _ in range(300) for file in own.others()]
    finally:
        over.set()
        writer.join()
    assert {file.alive for file in seen} == {True}
    other.release()


def test_files_are_readable_by_owner_only(folder: Path, own: WorkerFiles) -> None:
    own.write(b"1")
    modes = {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {0o700, 0o600}
    own.release()


def test_missing_folder_fails_write_and_reads_as_empty(folder: Path, own: WorkerFiles) -> None:
    folder.rmdir()
    with pytest.raises(OSError, match="No such file"):
        own.write(b"1")
    assert list(own.others()) == []


def test_non_worker_process_exports_folder_but_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANIC_WORKER_NAME", raising=False)
    assert worker_folder() is None
    named = os.environ[FOLDER]
    process, _, folder = named.partition(":")
    assert process == str(os.getpid())
    assert not Path(folder).exists()
    assert worker_folder() is None
    assert os.environ[FOLDER] == named
    # A server of its own that a worker has started.
    monkeypatch.setenv("SANIC_WORKER_NAME", "Sanic-Server-0-0")
    assert worker_folder() is None


def test_system_without_file_locks_or_temporary_folder_raises_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as context:
        context.setattr(worker_files, "fcntl", None)
        with pytest.raises(OSError, match="no POSIX file locks"):
            worker_folder()
    worker_files._choose_folder.cache_clear()
    monkeypatch.delenv("SANIC_WORKER_NAME", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(FileNotFoundError, match="No usable temporary directory"):
        worker_folder()


def test_worker_uses_folder_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_WORKER_NAME", "Sanic-Server-0-0")
    monkeypatch.setenv(FOLDER, f"{os.getppid()}:/of/the/server")
    assert worker_folder() == Path("/of/the/server")
    monkeypatch.delenv(FOLDER)
    assert worker_folder() is None


def test_folder_is_removed_when_its_process_exits(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from sanic_nats_bridge.metrics.worker_files import *; worker_folder();"
        f"f = Path(os.environ[{FOLDER!r}].partition(':')[2]); files = WorkerFiles(f, 'a', 'w');"
        "files.claim(); files.write(b'1');"
        "print(len(list(f.iterdir())), f)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "SANIC_WORKER_NAME"}
    environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    count, _, path = done.stdout.strip().partition(" ")
    assert count == "1"
    assert Path(path).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
