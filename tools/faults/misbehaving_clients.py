"""Clients that would keep a worker from ending: each holds a connection, and goes on holding it."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .machine import Machine
from .workload import NotDoneError

__all__ = ["HOSTILE", "HostileClients"]

_HOST: Final = "Host: app\r\n"
_UPGRADE: Final = (
    f"{_HOST}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_HALF_A_BODY: Final = f'{_HOST}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"session"'
_SUBSCRIBE: Final = '{"subjects":["flood.>"]}'
_FLOODED: Final = f"\x81{chr(128 | len(_SUBSCRIBE))}\0\0\0\0{_SUBSCRIBE}"
"""A WebSocket frame with a mask of zeros (RFC 6455, 5.2)."""

HOSTILE: Final[Mapping[str, str]] = {
    "a WebSocket that reads nothing, under a flood": f"GET /nats/stream?view=open HTTP/1.1\r\n{_UPGRADE}{_FLOODED}",
    "an event stream that reads nothing, under a flood": (
        f"GET /nats/events?view=open&subjects=flood.%3E HTTP/1.1\r\n{_HOST}\r\n"
    ),
    "a WebSocket that answers no close": f"GET /nats/stream?view=open HTTP/1.1\r\n{_UPGRADE}",
    "an event stream that is not closed": f"GET /nats/events?view=open HTTP/1.1\r\n{_HOST}\r\n",
    "half a POST": f"POST /nats/subscribe?view=open HTTP/1.1\r\n{_HALF_A_BODY}",
    "an idle connection": f"GET /facts HTTP/1.1\r\n{_HOST}\r\n",
    "a WebSocket whose permissions do not come": f"GET /nats/stream?view=hanging HTTP/1.1\r\n{_UPGRADE}",
    "an event stream whose permissions do not come": f"GET /nats/events?view=hanging HTTP/1.1\r\n{_HOST}\r\n",
}
"""What each of them sends, and no more."""

_BUFFER_BYTES: Final = 4096
_MOST_TRIES: Final = 200
_TURN_SECONDS: Final = 0.01
_PATIENCE_TURNS: Final = 500


class HostileClients:
    """All of them, at one worker."""

    def __init__(self, machine: Machine, worker: int) -> None:
        self._machine = machine
        self._worker = worker
        self._connections: list[socket.socket] = []

    async def come(self) -> None:
        """Have one of each kind at the worker.

        Raises:
            NotDoneError: The worker takes no connection.
        """
        for request in HOSTILE.values():
            connection = await self._at_the_worker()
            connection.send(request.encode("latin-1"))

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    async def _at_the_worker(self) -> socket.socket:
        for _ in range(_MOST_TRIES):
            connection = socket.socket()
            # What is not read soon fills the buffers.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            host, _, port = self._machine.address.rpartition(":")
            connection.connect((host, int(port)))
            if await self._is_at_the_worker(connection):
                self._connections.append(connection)
                return connection
            connection.close()
        raise NotDoneError(f"worker {self._worker} takes no connection")

    async def _is_at_the_worker(self, connection: socket.socket) -> bool:
        for _ in range(_PATIENCE_TURNS):
            inode = _far_inode(self._worker, connection)
            if inode:
                return f"socket:[{inode}]" in _targets(self._worker)
            await asyncio.sleep(_TURN_SECONDS)
        raise NotDoneError("a connection is taken by nobody")


def _far_inode(pid: int, connection: socket.socket) -> int:
    """The other end of the connection, as that process's network has it; 0 while nobody has taken it."""
    ports = f":{connection.getpeername()[1]:04X}", f":{connection.getsockname()[1]:04X}"
    # proc_net_tcp(5): local address, remote address, ..., inode
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1][-5:], fields[2][-5:]) == ports:
            return int(fields[9])
    return 0


def _targets(pid: int) -> set[str]:
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
