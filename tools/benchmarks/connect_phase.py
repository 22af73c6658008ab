"""How clients connect and subscribe."""

import contextlib
import http.client
import select
import socket
import struct
from collections.abc import Sequence
from typing import Final

from .client_protocols import Dialect, Step
from .subscribers import Audience

__all__ = ["join"]

_READ_BYTES: Final = 2**16
_EVENTS: Final = 8192
_PATIENCE_SECONDS: Final = 15.0
_STALLED_BUFFER_BYTES: Final = 4096
_STALLED_SEGMENT_BYTES: Final = 1024


class _Newcomer:
    """A connection on its way to its subscriptions."""

    def __init__(self, index: int, port: int, steps: list[Step], *, stalled: bool) -> None:
        self.index = index
        self.heard = b""
        self._steps = steps
        self._since = 0
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Gone at once when closed: no port waits for a minute.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if stalled:
            # Otherwise the kernel's buffers would take megabytes before the server sees that nobody reads.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _STALLED_BUFFER_BYTES)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _STALLED_SEGMENT_BYTES)
        self.socket.connect_ex(("127.0.0.1", port))

    def speak(self) -> None:
        """Send what is due."""
        data = self._steps[0].send
        if self.socket.send(data) != len(data):
            raise RuntimeError("A command did not fit into the socket's buffer")

    def listen(self) -> bool:
        """Read; whether all that was said has been answered."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise RuntimeError(f"A client was refused: {self.heard[-300:]!r}")
        self.heard += data
        step = self._steps[0]
        if self.heard.count(step.until, self._since) < step.times:
            return False
        self._since = len(self.heard)
        del self._steps[0]
        if self._steps:
            self.speak()
        return not self._steps


def join(
    port: int, dialect: Dialect, audience: Audience, indexes: Sequence[int], at_once: int
) -> dict[int, socket.socket]:
    """Connect and subscribe these of the clients, so many at the same time; their connections.

    Raises:
        RuntimeError: The server did not take them.
        OSError: The same.
    """
    waiting = list(reversed(indexes))
    underway: dict[int, _Newcomer] = {}
    ready: dict[int, _Newcomer] = {}
    with contextlib.closing(select.epoll()) as epoll:
        while len(ready) < len(indexes):
            while waiting and len(underway) < at_once:
                index = waiting.pop()
                newcomer = _Newcomer(index, port, dialect.steps(audience.names(index)), stalled=index in audience.idle)
                underway[newcomer.socket.fileno()] = newcomer
                epoll.register(newcomer.socket, select.EPOLLOUT)
            events = epoll.poll(_PATIENCE_SECONDS, _EVENTS)
            if not events:
                raise RuntimeError(f"Only {len(ready)} of {len(indexes)} clients could subscribe")
            for fd, event in events:
                newcomer = underway[fd]
                if event & select.EPOLLOUT:
                    epoll.modify(fd, select.EPOLLIN)
                    newcomer.speak()
                elif newcomer.listen():
                    epoll.unregister(fd)
                    ready[newcomer.index] = underway.pop(fd)
    _post(port, [post for index in indexes for post in dialect.posts(audience.names(index), ready[index].heard)])
    return {index: ready[index].socket for index in indexes}


def _post(port: int, requests: Sequence[bytes]) -> None:
    """Send the requests, one after another, on a connection beside those of the clients."""
    if not requests:
        return
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_SECONDS)) as connection:
        for request in requests:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"A command was refused: {body!r}")
