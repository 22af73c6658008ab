"""The connect phase: clients connect and subscribe."""

import contextlib
import http.client
import select
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from .client_protocols import ClientProtocol, Step
from .subscribers import Subscribers

__all__ = ["ConnectedClient", "connect_clients"]

_READ_BYTES = 2**16
_EVENTS = 8192
_TIMEOUT_SECONDS = 15.0
_STALLED_BUFFER_BYTES = 4096
_STALLED_SEGMENT_BYTES = 1024


class ConnectedClient(NamedTuple):
    """A client whose subscriptions are confirmed, and the bytes that it has received until then."""

    socket: socket.socket
    received: bytes


class _ConnectingClient:
    """A connection whose subscriptions aren't confirmed yet."""

    def __init__(self, index: int, port: int, steps: list[Step], *, stalled: bool) -> None:
        self.index = index
        self.received = b""
        self._steps = steps
        self._checked = 0
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Closing it sends RST, so that its port doesn't stay in TIME_WAIT for a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if stalled:
            # Otherwise the kernel would buffer megabytes before the server notices that the client doesn't read.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STALLED_BUFFER_BYTES)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _STALLED_SEGMENT_BYTES)
        self.socket.connect_ex(("127.0.0.1", port))

    def send(self) -> None:
        """Send the data of the current step."""
        data = self._steps[0].send
        if self.socket.send(data) != len(data):
            raise RuntimeError("A command did not fit into the socket's buffer")

    def receive(self) -> bool:
        """Read from the socket, and begin the next step if the current one is complete.

        Returns:
            True if all steps are complete.
        """
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise RuntimeError(f"A client was rejected: {self.received[-300:]!r}")
        self.received += data
        step = self._steps[0]
        if self.received.count(step.expected, self._checked) < step.count:
            return False
        self._checked = len(self.received)
        del self._steps[0]
        if self._steps:
            self.send()
        return not self._steps


def connect_clients(
    port: int, protocol: ClientProtocol, subscribers: Subscribers, indexes: Sequence[int], concurrency: int
) -> dict[int, ConnectedClient]:
    """Connect and subscribe the clients with these indexes.

    Args:
        port: The port of the server.
        protocol: The protocol that the server speaks.
        subscribers: The subjects of each client.
        indexes: The indexes of the clients to connect.
        concurrency: The largest number of clients that connect at the same time.

    Returns:
        The clients by their indexes.

    Raises:
        RuntimeError: The server rejected a client or did not answer.
        OSError: A connection failed.
    """
    waiting = list(reversed(indexes))
    connecting: dict[int, _ConnectingClient] = {}
    ready: dict[int, _ConnectingClient] = {}
    with contextlib.closing(select.epoll()) as epoll:
        while len(ready) < len(indexes):
            while waiting and len(connecting) < concurrency:
                index = waiting.pop()
                steps = protocol.steps(subscribers.subjects_of(index))
                client = _ConnectingClient(index, port, steps, stalled=index in subscribers.stalled_clients)
                connecting[client.socket.fileno()] = client
                epoll.register(client.socket, select.EPOLLOUT)
            events = epoll.poll(_TIMEOUT_SECONDS, _EVENTS)
            if not events:
                raise RuntimeError(f"Only {len(ready)} of {len(indexes)} clients could subscribe")
            for fd, event in events:
                client = connecting[fd]
                if event & select.EPOLLOUT:
                    epoll.modify(fd, select.EPOLLIN)
                    client.send()
                elif client.receive():
                    epoll.unregister(fd)
                    ready[client.index] = connecting.pop(fd)
    requests = [
        post for index in indexes for post in protocol.posts(subscribers.subjects_of(index), ready[index].received)
    ]
    _post(port, requests)
    return {index: ConnectedClient(ready[index].socket, ready[index].received) for index in indexes}


def _post(port: int, requests: Sequence[bytes]) -> None:
    """Send the requests one after another, on a connection apart from those of the clients."""
    if not requests:
        return
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_SECONDS)) as connection:
        for request in requests:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"A command was rejected: {body!r}")
