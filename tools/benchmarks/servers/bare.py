"""A loop of ``os.write`` and nothing else: the lower limit of the cost of one write per client and message.

``python -m tools.benchmarks.servers.bare '{"servers": "nats://…"}'``. It has no limits and supports one subject per
client. It is only for comparison.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
from urllib.parse import urlsplit

from ...harness.output import print_line
from ...harness.processes import raise_file_limit

_BACKLOG = 4096
_READ_BYTES = 65_536
_ACCEPTED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


class BareGateway:
    """Clients, their subscriptions, and a connection to NATS."""

    def __init__(self, broker: socket.socket) -> None:
        self._broker = broker
        self._rest = b""
        self._numbers: dict[bytes, int] = {}
        self._subscribers: list[list[int]] = []

    def read_client(self, connection: socket.socket) -> bool:
        """Read the handshake or the only command of a client. Return False if the client has disconnected."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = connection.recv(_READ_BYTES)
        if not data:
            for descriptors in self._subscribers:
                if connection.fileno() in descriptors:
                    descriptors.remove(connection.fileno())
        if data.startswith(b"GET "):
            connection.sendall(_ACCEPTED)
        elif data[:1] == b"\x81":
            # The clients of a benchmark mask with zeros.
            (subject,) = json.loads(data[data.index(b"{") :])["subjects"]
            self._subscribe(subject.encode(), connection.fileno())
            connection.sendall(_frame(b'{"type":"subscribed"}'))
        return bool(data)

    def read_messages(self) -> None:
        """Read from NATS, and write each message to its subscribers."""
        data = self._rest + self._broker.recv(_READ_BYTES)
        position = 0
        while (end := data.find(b"\r\n", position)) >= 0:
            words = data[position:end].split(b" ")
            stop = end + 2 + (int(words[-1]) + 2 if words[0] == b"MSG" else 0)
            if stop > len(data):
                break
            if words[0] == b"MSG":
                self._write(int(words[2]), _frame(b'{"data":%b}' % data[end + 2 : stop - 2]))
            elif words[0] == b"PING":
                self._broker.sendall(b"PONG\r\n")
            position = stop
        self._rest = data[position:]

    def _subscribe(self, subject: bytes, descriptor: int) -> None:
        if subject not in self._numbers:
            self._numbers[subject] = len(self._subscribers)
            self._subscribers.append([])
            self._broker.sendall(b"SUB %b %d\r\n" % (subject, self._numbers[subject]))
        self._subscribers[self._numbers[subject]].append(descriptor)

    def _write(self, number: int, frame: bytes) -> None:
        write = os.write
        for descriptor in self._subscribers[number]:
            write(descriptor, frame)


def _frame(document: bytes) -> bytes:
    size = len(document)
    return (bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2)) + document


def main() -> None:
    """Serve until the process ends."""
    raise_file_limit()
    address = urlsplit(json.loads(sys.argv[1])["servers"])
    broker = socket.create_connection((address.hostname, address.port))
    broker.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
    listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    gateway = BareGateway(broker)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(broker, selectors.EVENT_READ)
    print_line(str(listener.getsockname()[1]))
    while True:
        for key, _ in selector.select():
            if key.fileobj is broker:
                gateway.read_messages()
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
            elif isinstance(key.fileobj, socket.socket) and not gateway.read_client(key.fileobj):
                selector.unregister(key.fileobj)
                key.fileobj.close()


if __name__ == "__main__":
    main()
