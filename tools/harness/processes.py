"""Start servers, and read the state of processes and of the machine from the kernel (Linux)."""

import contextlib
import functools
import itertools
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .remote import end_with_parent

__all__ = [
    "PROJECT",
    "Server",
    "busy_ticks",
    "cpu_ns",
    "descendants",
    "find_command",
    "free_port",
    "has_ended",
    "listens",
    "open_files",
    "prefer",
    "python_server",
    "raise_file_limit",
    "resident_bytes",
    "server",
    "settled_bytes",
    "stop",
]

PROJECT = Path(__file__).parents[2]
_COMMAND_PATH = f"{os.environ['PATH']}:/usr/local/sbin:/usr/sbin"
_PORT_RANGE = range(12_000, 32_000)  # below Linux's default range of ephemeral ports
_PORT_STEP = 211

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
_SETTLE_SECONDS = 10.0
_CPUCLOCK_SCHED = 2
_PREFERRED_NICENESS = -10
_IDLE_FIELDS = (3, 4)  # idle and iowait, see proc_stat(5)
_STEAL_END = 8  # the fields after it are contained in user and nice


class Server(NamedTuple):
    """A running server.

    Attributes:
        workers: The processes that serve, if the server is a manager that starts and supervises them.
    """

    pid: int
    port: int
    workers: tuple[int, ...] = ()

    @property
    def cpu_ns(self) -> int:
        """CPU time of the processes that serve, in nanoseconds.

        A manager isn't included, because its CPU time doesn't depend on the load.
        """
        return sum(map(cpu_ns, self.workers or (self.pid,)))


@contextlib.contextmanager
def server(command: Sequence[str], workers: int = 1) -> Iterator[Server]:
    """Run a server that prints one line for each worker: the port, followed by the process id if it has a manager.

    Raises:
        RuntimeError: The server did not start. The message contains the end of its log.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            command,
            bufsize=0,  # select doesn't see data in a buffer
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=PROJECT,
            start_new_session=True,
            # A manager needs SIGTERM, so that it can end its workers.
            preexec_fn=functools.partial(end_with_parent, signal.SIGKILL if workers == 1 else signal.SIGTERM),
        )
        try:
            lines = [_read_line(process).split() for _ in range(workers)]
            if not all(lines) or not all(word.isdigit() for line in lines for word in line):
                log.seek(0)
                raise RuntimeError(f"The server did not start: {log.read()[-2000:].decode(errors='replace')}")
            yield Server(process.pid, int(lines[0][0]), tuple(int(pid) for _, *pids in lines for pid in pids))
        finally:
            stop(process)


def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    return process.stdout.readline() if readable else b""


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process that leads a process group, and its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=_STOP_SECONDS)
    # Its children may outlive it. Without any, the process group no longer exists.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def python_server(
    module: str, *arguments: str, workers: int = 1, prefix: Sequence[str] = ()
) -> contextlib.AbstractContextManager[Server]:
    """Run a module with this Python, as `server` does.

    Args:
        module: The name of the module.
        arguments: The arguments of its command line.
        workers: The number of workers, each of which prints a line.
        prefix: The beginning of a command that executes the rest of it, in the same process.
    """
    return server([*prefix, sys.executable, "-m", module, *arguments], workers)


def find_command(name: str) -> str | None:
    """Return the path of a command, which may be one for administrators, or None if it isn't installed."""
    return shutil.which(name, path=_COMMAND_PATH)


def listens(port: int) -> bool:
    """Return True if a server accepts connections on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def raise_file_limit() -> None:
    """Raise the limit of open files of this process to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_ns(pid: int) -> int:
    """Return the CPU time, user and system, of all threads of a process and its descendants, in nanoseconds."""
    # The clock id of another process, as computed by clock_getcpuclockid(3).
    # /proc/PID/stat has the same sum, but in hundredths of a second.
    return sum(time.clock_gettime_ns((~each << 3) | _CPUCLOCK_SCHED) for each in descendants(pid))


def descendants(pid: int) -> list[int]:
    """Return a process, its children, their children, and so on."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += descendants(int(child))
    return found


def has_ended(pid: int) -> bool:
    """Return True if the process has ended, whether or not its parent has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def open_files(pid: int) -> int:
    """Return the number of open files and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and its descendants."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) * page for each in descendants(pid))


def settled_bytes(pid: int, seconds: float) -> int:
    """Return the resident memory once it has changed by less than 1 % in this time, or after ten seconds."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    before = resident_bytes(pid)
    while True:
        time.sleep(seconds)
        now = resident_bytes(pid)
        if abs(now - before) < before / 100 or time.monotonic() > deadline:
            return now
        before = now


def prefer(pid: int) -> bool:
    """Give a process that leads a session a higher priority than others have; return whether that is allowed."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.setpriority(os.PRIO_PROCESS, int(thread.name), _PREFERRED_NICENESS)
        # Linux may first divide the CPU time between sessions, see sched(7).
        with contextlib.suppress(FileNotFoundError):
            Path(f"/proc/{pid}/autogroup").write_text(str(_PREFERRED_NICENESS))
    except PermissionError:
        return False
    return True


def busy_ticks() -> tuple[int, int]:
    """Return the busy time and the total time of the machine's cores since it started, in clock ticks."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]][:_STEAL_END]
    total = sum(fields)
    return total - sum(fields[index] for index in _IDLE_FIELDS), total


def free_port() -> int:
    """Return a free port of 127.0.0.1 that the system doesn't assign as an ephemeral port."""
    for port in _ports(os.getpid()):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("No port is free")


@functools.cache
def _ports(process: int) -> Iterator[int]:
    """Return an iterator over all ports, shared by all calls for the process.

    No port comes twice, because a port stays free until its server has started. Each process begins at another port.
    """
    first = process * _PORT_STEP % len(_PORT_RANGE)
    return itertools.chain(_PORT_RANGE[first:], _PORT_RANGE[:first])
