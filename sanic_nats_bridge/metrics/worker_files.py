"""What the workers of one server let each other read: a file for each, in a folder of the server.

The process that starts the workers names the folder, and hands the name on by the environment. A process
holds a lock (``flock``) on its file for as long as it lives, however it ends, so that the lock tells
whether a file's process does: neither a clock nor a process id would.
"""

import atexit
import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["WorkerFile", "WorkerFiles", "worker_folder"]

_FOLDER_VARIABLE: Final = "_SANIC_NATS_BRIDGE_FOLDER"
_WORKER_VARIABLE: Final = "SANIC_WORKER_NAME"
_MAX_TRIES: Final = 5


def worker_folder() -> Path | None:
    """Where the workers of this server meet, in one of them; ``None`` in another process.

    To be called in the process that starts them too, before it does.
    """
    starter, _, folder = os.environ.get(_FOLDER_VARIABLE, "").partition(":")
    # By the process id, for a server that a worker has started inherits its environment. multiprocessing does not
    # tell a child of its own yet while that imports the main module, which may have the app in it.
    if _WORKER_VARIABLE in os.environ and starter == str(os.getppid()):
        return Path(folder)
    _name_folder()
    return None


@cache
def _name_folder() -> None:
    """Name a folder for the workers that this process may start; the first of them makes it."""
    folder = Path(tempfile.gettempdir(), f"sanic-nats-bridge-{secrets.token_hex(16)}")
    os.environ[_FOLDER_VARIABLE] = f"{os.getpid()}:{folder}"
    atexit.register(_remove, folder)


def _remove(folder: Path) -> None:
    # By another name, for workers that still stop may write meanwhile; they find no folder then.
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.rename(f"{folder}.gone"), ignore_errors=True)


class WorkerFile(NamedTuple):
    """What another process has written."""

    worker: str
    content: bytes
    alive: bool
    """Whether that process lives."""


class WorkerFiles:
    """The files of an app's workers, one of which is this process's own."""

    def __init__(self, folder: Path, app: str, worker: str) -> None:
        # Neither name has a dot in it, as Sanic makes them.
        self._folder = folder
        self._app = app
        self._own = folder / f"{app}.{worker}.{os.getpid()}"
        self._lock: int | None = None

    def claim(self) -> bytes:
        """Take over the file that a process has left which was the same worker; returns what it holds, if any.

        Raises:
            OSError: The folder cannot be made, or used.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        worker = self._own.name.rpartition(".")[0]
        for path in sorted(self._folder.glob(f"{worker}.*")):
            file = _opened(path)
            if file is None:
                continue
            if _locked(file, fcntl.LOCK_EX) and _stands(file, path):
                self._own, self._lock = path, file
                return _content(file)
            os.close(file)
        return b""

    def write(self, content: bytes) -> None:
        """Let others read this, in the place of what was written before.

        Raises:
            OSError: The folder is gone, or there is no room.
        """
        temporary = self._own.with_name(f".{self._own.name}")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anyone can see it
            with os.fdopen(file, "wb", closefd=False) as stream:
                stream.write(content)
            temporary.replace(self._own)
        except BaseException:
            os.close(file)
            raise
        self.release()
        self._lock = file

    def release(self) -> None:
        """Let the lock go, as the end of the process would."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def others(self) -> Iterator[WorkerFile]:
        """What the other processes have written."""
        for path in sorted(self._folder.glob(f"{self._app}.*")):
            if path != self._own:
                found = _read(path)
                if found is not None:
                    yield WorkerFile(path.name.split(".")[1], *found)


def _read(path: Path) -> tuple[bytes, bool] | None:
    """What the file holds, and whether its process lives."""
    for _ in range(_MAX_TRIES):
        file = _opened(path)
        if file is None:
            return None
        try:
            if not _locked(file, fcntl.LOCK_SH):
                return _content(file), True
            # A file that was just replaced has no lock any more; the one in its place has.
            if _stands(file, path):
                return _content(file), False
        finally:
            os.close(file)
    return None


def _opened(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return None


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stands(file: int, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _content(file: int) -> bytes:
    with os.fdopen(file, "rb", closefd=False) as stream:
        return stream.read()
