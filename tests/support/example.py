"""`python -m example_app` as a process, as `make run` starts it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, alive, free_port, wait_until
from tests.support.process import ManagerReady

ROOT = Path(__file__).parents[2]


def descendants(pid: int) -> set[int]:
    """Return the ids of all descendants of this process."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child} | descendants(child)
    return found


def name_of(pid: int) -> str:
    """Return the name of a process, or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


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
        self._workers = int(arguments[arguments.index("--workers") + 1]) if "--workers" in arguments else 1
        # A test sends more requests from one address than a browser does.
        unlimited = {"SANIC_NATS_BRIDGE_REQUEST_RATE": "0", "SANIC_NATS_BRIDGE_MAX_RELAYS_PER_CLIENT": "1000"}
        self._environment = unlimited | environment

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
        with tempfile.TemporaryFile() as log, ManagerReady() as ready:
            # Sanic's manager may kill its whole process group, which must not be that of the tests.
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment | ready.environment, stdout=log, stderr=log, start_new_session=True
            )

            def explain() -> str:
                self.end(signal.SIGKILL)
                log.seek(0)
                return f"the example app does not answer: {log.read().decode()}"

            wait_until(lambda: self._answers() or self.process.poll() is not None, explain, seconds=3 * WAIT_SECONDS)
            assert self.process.poll() is None, explain()
            wait_until(lambda: self._workers == 1 or ready(), explain, seconds=3 * WAIT_SECONDS)

    def end(self, number: signal.Signals) -> int:
        """Send the signal; returns the exit status. Nothing but the nats-server may be left then."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(3 * WAIT_SECONDS)
        finally:
            # Sanic's workers outlive a killed main process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def restart(self, number: signal.Signals) -> None:
        """End it by the signal, and start it again on the same port."""
        family = self.family()
        self.end(number)
        wait_until(lambda: not any(map(alive, family)))
        self.start()

    def family(self) -> set[int]:
        """Return the ids of all processes of the app."""
        return {self.process.pid} | descendants(self.process.pid)

    def nats_servers(self) -> set[int]:
        """Return the ids of the app's processes that are a nats-server."""
        return {pid for pid in self.family() if name_of(pid) == "nats-server"}

    def connections(self) -> list[dict[str, Any]]:
        """Return the connections to the app's own nats-server."""
        (pid,) = self.nats_servers()
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        folder = Path(arguments[arguments.index("--ports_file_dir") + 1])
        ports = json.loads((folder / f"nats-server_{pid}.ports").read_text())
        with urllib.request.urlopen(f"{ports['monitoring'][0]}/connz") as response:
            found: list[dict[str, Any]] = json.load(response)["connections"]
        return found

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=WAIT_SECONDS):
                return True
        except (urllib.error.URLError, OSError):
            return False
