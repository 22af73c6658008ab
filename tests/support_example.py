"""`python -m example_app` as a process, as `make run` starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from sanic_nats_bridge.testing import NatsServer

from .support import WAIT_SECONDS

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def descendants(pid: int) -> set[int]:
    """The processes below this one."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that is dead and not yet waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def publish(server: NatsServer, subject: str, payload: bytes) -> None:
    """Publish one message by the NATS protocol itself; returns when the server has it."""
    with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as connection:
        line = f"PUB {subject} {len(payload)}\r\n".encode()
        connection.sendall(b"CONNECT {}\r\n" + line + payload + b"\r\nPING\r\n")
        answer = b""
        while b"PONG" not in answer:
            part = connection.recv(4096)
            assert part, answer
            answer += part


class ExampleApp:
    def __init__(self, *arguments: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._arguments = arguments
        self._environment = environment

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end(signal.SIGTERM)

    def start(self) -> None:
        command = [sys.executable, "-m", "example_app", "--port", str(self.port), *self._arguments]
        environment = {name: value for name, value in os.environ.items() if name != "NATS_URL"} | self._environment
        # Sanic's manager may kill its whole process group, which must not be that of the tests.
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 3 * WAIT_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, "the example app does not answer"
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> int:
        """Send the signal; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(3 * WAIT_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def restart(self, number: signal.Signals) -> None:
        family = descendants(self.process.pid)
        self.end(number)
        deadline = time.monotonic() + WAIT_SECONDS
        while any(alive(pid) for pid in family) and time.monotonic() < deadline:
            for pid in family:
                # Sanic's workers outlive a killed main process.
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.start()

    def output(self) -> str:
        """What the app has printed; it must have ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def family(self) -> set[int]:
        """All processes of the app."""
        return {self.process.pid} | descendants(self.process.pid)

    def nats_servers(self) -> set[int]:
        """Those that are a nats-server."""
        return {pid for pid in self.family() if Path(f"/proc/{pid}/comm").read_text().startswith("nats-server")}

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False
