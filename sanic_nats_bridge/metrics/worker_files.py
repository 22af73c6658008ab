"""Files by which the workers of one server share data: one per worker, in a folder of the server.

The process that starts the workers chooses the folder, and passes it on by the environment. Each process holds a lock
(``flock``) on its file until it ends, for any reason. So the lock shows whether the process is alive, which neither a
clock nor a process id could.
"""

import atexit
import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["WorkerFile", "WorkerFiles", "worker_folder"]

_FOLDER_VARIABLE = "_SANIC_NATS_BRIDGE_FOLDER"
_WORKER_VARIABLE = "SANIC_WORKER_NAME"
_MAX_TRIES = 5


def worker_folder() -> Path | None:
    """Return the shared folder in a worker process; ``None`` in another process.

    It must be called in the process that starts the workers too, before it starts them.

    Raises:
        OSError: The processes of this system cannot share files: it has no file locks, or no folder to write to.
    """
    if fcntl is None:
        raise OSError("this system has no POSIX file locks")
    starter, _, folder = os.environ.get(_FOLDER_VARIABLE, "").partition(":")
    # Compared by process id, because a server that a worker starts inherits its environment. multiprocessing
    # doesn't know a child as its own yet while that imports the main module, which may contain the app.
    if _WORKER_VARIABLE in os.environ and starter == str(os.getppid()):
        return Path(folder)
    _choose_folder()
    return None


@cache
def _choose_folder() -> None:
    """Choose a folder for the workers that this process may start; the first worker makes it."""
    folder = Path(tempfile.gettempdir(), f"sanic-nats-bridge-{secrets.token_hex(16)}")
    os.environ[_FOLDER_VARIABLE] = f"{os.getpid()}:{folder}"
    atexit.register(_remove, folder)


def _remove(folder: Path) -> None:
    # Renamed first, so that workers that are still stopping find no folder to write to.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(f"{folder}.gone"), ignore_errors=True)


class WorkerFile(NamedTuple):
    """The content of another process's file."""

    worker: str
    content: bytes
    alive: bool
    """True if that process is alive."""


class WorkerFiles:
    """The files of an app's workers, one of which belongs to this process."""

    def __init__(self, folder: Path, app: str, worker: str) -> None:
        # Neither name contains a dot, as Sanic makes them.
        self._folder = folder
        self._app = app
        self._own = folder / f"{app}.{worker}.{os.getpid()}"
        self._lock: int | None = None

    def claim(self) -> bytes:
        """Take over the file of a dead process that was the same worker; return its content, if any.

        Raises:
            OSError: The folder cannot be made or used.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        worker = self._own.name.rpartition(".")[0]
        for path in sorted(self._folder.glob(f"{worker}.*")):
            file = _open(path)
            if file is None:
                continue
            if _lock_file(file, fcntl.LOCK_EX) and _is_current(file, path):
                self._own, self._lock = path, file
                return _content(file)
            os.close(file)
        return b""

    def write(self, content: bytes) -> None:
        """Replace the content of this process's file.

        Raises:
            OSError: The folder was removed, or the disk is full.
        """
        temporary = self._own.with_name(f".{self._own.name}")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before the file is visible to others
            with os.fdopen(file, "wb", closefd=False) as stream:
                stream.write(content)
            temporary.replace(self._own)
        except BaseException:
            os.close(file)
            raise
        self.release()
        self._lock = file

    def release(self) -> None:
        """Release the lock, as the end of the process would."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def others(self) -> Iterator[WorkerFile]:
        """Yield the files of the other processes."""
        for path in sorted(self._folder.glob(f"{self._app}.*")):
            if path != self._own:
                found = _read(path)
                if found is not None:
                    yield WorkerFile(path.name.split(".")[1], *found)


def _read(path: Path) -> tuple[bytes, bool] | None:
    """Return the content of a file, and whether its process is alive."""
    for _ in range(_MAX_TRIES):
        file = _open(path)
        if file is None:
            return None
        try:
            if not _lock_file(file, fcntl.LOCK_SH):
                return _content(file), True
            # A file that was just replaced has no lock any more, but its replacement has.
            if _is_current(file, path):
                return _content(file), False
        finally:
            os.close(file)
    return None


def _open(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return None


def _lock_file(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_current(file: int, path: Path) -> bool:
    """Return whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _content(file: int) -> bytes:
    with os.fdopen(file, "rb", closefd=False) as stream:
        return stream.read()
