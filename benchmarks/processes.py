"""Starting servers, and what the kernel tells about processes and the machine (Linux)."""

import contextlib
import os
import random
import resource
import select
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
    "python_server",
    "raise_file_limit",
    "resident_bytes",
    "server",
    "settled_bytes",
]

PROJECT: Final = Path(__file__).parents[1]
_NOT_EPHEMERAL: Final = (12_000, 32_000)

_START_SECONDS: Final = 20.0
_END_SECONDS: Final = 5.0
_SETTLE_SECONDS: Final = 10.0
_CPUCLOCK_SCHED: Final = 2
_IDLE_FIELDS: Final = (3, 4)  # idle and iowait, see proc_stat(5)
_STEAL_END: Final = 8  # what follows is contained in user and nice


class Server(NamedTuple):
    """A running server."""

    pid: int
    port: int


@contextlib.contextmanager
def server(command: Sequence[str]) -> Iterator[Server]:
    """Run a server whose first line of output is its port.

    Raises:
        RuntimeError: It did not start; the message holds its last words.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            command, stdout=subprocess.PIPE, stderr=log, cwd=PROJECT, start_new_session=True, preexec_fn=end_with_parent
        )
        try:
            line = _first_line(process)
            if not line.strip().isdigit():
                log.seek(0)
                raise RuntimeError(f"The server did not start: {log.read()[-2000:].decode(errors='replace')}")
            yield Server(process.pid, int(line))
        finally:
            _end(process)


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    return process.stdout.readline() if readable else b""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def python_server(module: str, *arguments: str) -> contextlib.AbstractContextManager[Server]:
    """Run a module of `benchmarks.servers` by this Python."""
    return server([sys.executable, "-m", f"benchmarks.servers.{module}", *arguments])


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
    while True:
        port = random.randint(*_NOT_EPHEMERAL)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
