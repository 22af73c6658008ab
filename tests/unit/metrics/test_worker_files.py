import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

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


def test_a_killed_process_is_dead_at_once_and_the_next_takes_its_file_over(folder: Path, own: WorkerFiles) -> None:
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


def test_what_lives_is_not_taken_over_and_apps_do_not_meet(folder: Path, own: WorkerFiles) -> None:
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


def test_a_reader_never_takes_for_dead_what_is_being_replaced(folder: Path, own: WorkerFiles) -> None:
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


def test_only_the_owner_may_read(folder: Path, own: WorkerFiles) -> None:
    own.write(b"1")
    modes = {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
    assert modes == {0o700, 0o600}
    own.release()


def test_a_folder_that_is_gone_is_an_error_for_the_writer_and_nothing_to_read(folder: Path, own: WorkerFiles) -> None:
    folder.rmdir()
    with pytest.raises(OSError, match="No such file"):
        own.write(b"1")
    assert list(own.others()) == []


def test_a_process_that_is_no_worker_hands_a_folder_on_and_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_worker_has_the_folder_that_it_was_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANIC_WORKER_NAME", "Sanic-Server-0-0")
    monkeypatch.setenv(FOLDER, f"{os.getppid()}:/of/the/server")
    assert worker_folder() == Path("/of/the/server")
    monkeypatch.delenv(FOLDER)
    assert worker_folder() is None


def test_the_folder_goes_with_the_process_that_has_named_it(tmp_path: Path) -> None:
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
