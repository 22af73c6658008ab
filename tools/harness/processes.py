"""Starting servers, and what the kernel tells about processes and the machine (Linux)."""

import contextlib
import functools
import itertools
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from .remote import end_with_parent

__all__ = [
    "PROJECT",
    "Server",
    "busy_ticks",
    "cpu_ns",
    "descendants",
    "free_port",
    "open_files",
    "python_server",
    "raise_file_limit",
    "resident_bytes",
    "server",
    "settled_bytes",
]

PROJECT: Final = Path(__file__).parents[2]
_NOT_EPHEMERAL: Final = range(12_000, 32_000)
_PORTS_APART: Final = 211

_START_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 10.0
_CPUCLOCK_SCHED: Final = 2
_IDLE_FIELDS: Final = (3, 4)  # idle and iowait, see proc_stat(5)
_STEAL_END: Final = 8  # what follows is contained in user and nice


class Server(NamedTuple):
    """A running server.

    Attributes:
        workers: The processes that serve, where another starts them and looks after them.
    """

    pid: int
    port: int
    workers: tuple[int, ...] = ()

    @property
    def cpu_ns(self) -> int:
        """CPU time of those that serve, in nanoseconds: what looks after them takes its time whatever they do."""
        return sum(map(cpu_ns, self.workers or (self.pid,)))


@contextlib.contextmanager
def server(command: Sequence[str], workers: int = 1) -> Iterator[Server]:
    """Run a server that prints a line for each of its workers: the port, and the process id where there are several.

    Raises:
        RuntimeError: It did not start; the message holds its last words.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            command,
            bufsize=0,  # what stands in a buffer is not seen by select
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=PROJECT,
            start_new_session=True,
            # A manager of workers must be let end them.
            preexec_fn=functools.partial(end_with_parent, signal.SIGKILL if workers == 1 else signal.SIGTERM),
        )
        try:
            lines = [_line(process).split() for _ in range(workers)]
            if not all(lines) or not all(word.isdigit() for line in lines for word in line):
                log.seek(0)
                raise RuntimeError(f"The server did not start: {log.read()[-2000:].decode(errors='replace')}")
            yield Server(process.pid, int(lines[0][0]), tuple(int(pid) for _, *pids in lines for pid in pids))
        finally:
            _end(process)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    return process.stdout.readline() if readable else b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_END_SECONDS)
    # What it has started may outlive it; the group is gone where nothing has.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def python_server(module: str, *arguments: str, workers: int = 1) -> contextlib.AbstractContextManager[Server]:
    """Run a module of `tools.benchmarks.servers` by this Python."""
    return server([sys.executable, "-m", f"tools.benchmarks.servers.{module}", *arguments], workers)


def raise_file_limit() -> None:
    """Let this process have as many open files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_ns(pid: int) -> int:
    """CPU time, user and system, of all threads of a process and its descendants, in nanoseconds."""
    # The clock of another process's CPU time, as clock_getcpuclockid(3) makes it: /proc/PID/stat has
    # the same sum in hundredths of a second.
    return sum(time.clock_gettime_ns((~each << 3) | _CPUCLOCK_SCHED) for each in descendants(pid))


def descendants(pid: int) -> list[int]:
    """A process, its children, theirs, and so on."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * page for each in descendants(pid))


def settled_bytes(pid: int, seconds: float) -> int:
    """Resident memory when it has stayed the same, to a hundredth, for so long; at the latest after ten seconds."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    before = resident_bytes(pid)
    while True:
        time.sleep(seconds)
        now = resident_bytes(pid)
        if abs(now - before) < before / 100 or time.monotonic() > deadline:
            return now
        before = now


def busy_ticks() -> tuple[int, int]:
    """How long the machine's cores were busy since it started, and how long altogether."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]][:_STEAL_END]
    total = sum(fields)
    return total - sum(fields[index] for index in _IDLE_FIELDS), total


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that no system gives to whoever asks for any port."""
    for port in _ports(os.getpid()):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("No port is free")


@functools.cache
def _ports(process: int) -> Iterator[int]:
    """None twice, for one may be free only until a server has started; other processes begin elsewhere."""
    first = process * _PORTS_APART % len(_NOT_EPHEMERAL)
    return itertools.chain(_NOT_EPHEMERAL[first:], _NOT_EPHEMERAL[:first])
