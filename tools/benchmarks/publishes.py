"""Publishes and requests of clients: the cost for the server, and the time until they are answered."""

import re
import selectors
import socket
import statistics
import threading
import time
from collections import deque
from typing import Protocol

from ..harness.processes import busy_ticks, raise_file_limit
from ..harness.remote import Remote, remote
from .client_protocols import BridgeWebSocket, NatsWebSocket, binary_frame, text_frame
from .payloads import document
from .results import Run
from .round_trips import busy_percent, quantile
from .scenarios import Case
from .targets import RunningTarget

__all__ = ["Publishes", "Responder", "measure_publishes"]

_CORE, _STORED, _SERVICE = "bench.publish", "history.publish", "bench.echo"
_SUBJECTS = {"publish": _CORE, "ack": _STORED, "request": _SERVICE}
_READ_BYTES = 65_536
_TIMEOUT_SECONDS = 30.0
_WARMUP = 400


class _Speech(Protocol):
    """The way in which a client publishes and is answered."""

    answer: re.Pattern[bytes]
    """Matches each answer to a publish or a request."""

    def opening(self, client: int) -> bytes:
        """Return what the client sends once after the handshake."""

    def command(self, kind: str, client: int, payload: bytes) -> bytes:
        """Return a publish, a publish with acknowledgement (``ack``), or a request."""


class _Bridge:
    """The bridge's ``/stream``. A publish is answered when it was handed to NATS."""

    answer = re.compile(rb'"type":"reply"[^\n]*?"success":true')

    def opening(self, client: int) -> bytes:
        return b""

    def command(self, kind: str, client: int, payload: bytes) -> bytes:
        action = b"request" if kind == "request" else b"publish"
        fields = b',"ack":true' if kind == "ack" else b""
        subject = _SUBJECTS[kind].encode()
        return text_frame(b'{"action":"%b","id":1,"subject":"%b","data":%b%b}' % (action, subject, payload, fields))


class _Nats:
    """The WebSocket port of nats-server. A PING after a publish shows that the server has it."""

    answer = re.compile(rb"PONG\r\n|MSG [^\r]*\r\n[^\r]*\r\n")

    def opening(self, client: int) -> bytes:
        return binary_frame(b"SUB _INBOX.%d.* 2\r\n" % client)

    def command(self, kind: str, client: int, payload: bytes) -> bytes:
        subject, size = _SUBJECTS[kind].encode(), len(payload)
        if kind == "publish":
            return binary_frame(b"PUB %b %d\r\n%b\r\nPING\r\n" % (subject, size, payload))
        return binary_frame(b"PUB %b _INBOX.%d.1 %d\r\n%b\r\n" % (subject, client, size, payload))


_SPEECHES: dict[str, tuple[_Speech, BridgeWebSocket | NatsWebSocket]] = {
    "bridge-ws": (_Bridge(), BridgeWebSocket()),
    "nats-ws": (_Nats(), NatsWebSocket()),
}


class Publishes:
    """Clients that publish and send requests, each on a connection of its own.

    Args:
        port: The port of the server.
        protocol: The protocol of the server, ``bridge-ws`` or ``nats-ws``.
        clients: The number of clients.
        size: Bytes of each payload.
    """

    def __init__(self, port: int, protocol: str, clients: int, size: int) -> None:
        raise_file_limit()
        self._speech, self._protocol = _SPEECHES[protocol]
        self._size = size
        self._selector = selectors.DefaultSelector()
        self._clients = [_Client(port, number) for number in range(clients)]
        for client in self._clients:
            self._open(client)
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def measure(self, kind: str, count: int, rate: float, at_once: int) -> list[int]:
        """Send commands, by each client in turn; return the time of each until its answer, in nanoseconds.

        Args:
            kind: ``publish``, ``ack`` or ``request``.
            count: The number of commands.
            rate: Commands per second of all clients. 0 sends the next ones when all are answered.
            at_once: The number of commands that a client sends at once.

        Raises:
            RuntimeError: A command isn't answered, or fails.
        """
        times: list[int] = []
        started, sent = time.monotonic_ns(), 0
        deadline = time.monotonic() + _TIMEOUT_SECONDS + (count / rate if rate else 0)
        while len(times) < count:
            now = time.monotonic_ns()
            due = started + int(sent / rate * 1e9) if rate else now
            if sent < count and now >= due and (rate or sent == len(times)):
                for client in self._clients if not rate else [self._clients[sent // at_once % len(self._clients)]]:
                    sent += client.send([self._command(kind, client, sent + each) for each in range(at_once)])
                continue
            self._read(times, max(0.0, (due - now) / 1e9) if sent < count and rate else 1.0)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{sent - len(times)} commands were not answered")
        return times

    def _command(self, kind: str, client: "_Client", number: int) -> bytes:
        return self._speech.command(kind, client.number, document(number, time.monotonic_ns(), self._size))

    def _read(self, times: list[int], seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            client: _Client = key.data
            data = client.socket.recv(_READ_BYTES)
            now = time.monotonic_ns()
            if not data or b"-ERR" in data or b'"success":false' in data:
                raise RuntimeError(f"A command has failed: {data[:300]!r}")
            client.received += data
            end = 0
            for match in self._speech.answer.finditer(client.received):
                times.append(now - client.sent.popleft())
                end = match.end()
            client.received = client.received[end:]

    def _open(self, client: "_Client") -> None:
        for step in self._protocol.steps(["bench.none"]):
            client.socket.sendall(step.send)
            received = b""
            while received.count(step.expected) < step.count:
                data = client.socket.recv(_READ_BYTES)
                if not data:
                    raise RuntimeError(f"A connection was rejected: {received!r}")
                received += data
        if opening := self._speech.opening(client.number):
            client.socket.sendall(opening)


class _Client:
    """A connection, and the times at which commands were sent that aren't answered yet."""

    def __init__(self, port: int, number: int) -> None:
        self.number = number
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent: deque[int] = deque()
        self.received = b""

    def send(self, frames: list[bytes]) -> int:
        """Send frames in one write; return their number."""
        now = time.monotonic_ns()
        self.sent.extend([now] * len(frames))
        self.socket.sendall(b"".join(frames))
        return len(frames)


class Responder:
    """A service in bare NATS protocol, which answers each request with its payload.

    Args:
        port: The port of nats-server.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB %b 1\r\nPING\r\n' % _SERVICE.encode())
        while not self._file.readline().startswith(b"PONG"):
            pass
        self._socket.settimeout(None)
        threading.Thread(target=self._serve, daemon=True).start()

    def ready(self) -> None:
        """Return when the service answers."""

    def _serve(self) -> None:
        for line in self._file:
            if line.startswith(b"PING"):
                self._socket.sendall(b"PONG\r\n")
                continue
            verb, *fields = line.split()
            if verb not in (b"MSG", b"HMSG"):
                continue
            headers = int(fields[-2]) if verb == b"HMSG" else 0
            payload = self._file.read(int(fields[-1]) + 2)[headers:-2]
            self._socket.sendall(b"PUB %b %d\r\n%b\r\n" % (fields[2], len(payload), payload))


def measure_publishes(run: Run, case: Case, running: RunningTarget, protocol: str) -> None:
    """Measure the commands of a case.

    The metrics are the CPU time of server and broker for each command, and the time until the answer.
    """
    with (
        remote(Responder, running.broker.port) as responder,
        remote(Publishes, running.server.port, protocol, case.subscribers.size, case.size) as clients,
    ):
        responder.call(Responder.ready)
        _send(clients, case, _warmup(case))
        server, broker, machine = running.server.cpu_ns, running.broker.cpu_ns, busy_ticks()
        times = sorted(_send(clients, case, case.messages))
        used = running.server.cpu_ns - server, running.broker.cpu_ns - broker
    run.metrics |= {
        "command_cpu": used[0] / case.messages / 1e3,
        "command_broker_cpu": used[1] / case.messages / 1e3,
        "answer_p50": statistics.median(times) / 1e6,
        "answer_p99": quantile(times, 0.99),
        "busy": busy_percent(machine),
    }


def _warmup(case: Case) -> int:
    """Return a number of commands that all clients send an equal number of times."""
    together = case.subscribers.size * case.bursts
    return -(-_WARMUP // together) * together


def _send(clients: Remote[Publishes], case: Case, count: int) -> list[int]:
    times: list[int] = clients.call(Publishes.measure, case.publish, count, case.rate, case.bursts)
    return times
