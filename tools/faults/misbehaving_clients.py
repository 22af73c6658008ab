"""Clients that could prevent a worker from ending, because each keeps its connection open."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

from .machine import Machine
from .workload import InjectionError

__all__ = ["MISBEHAVIORS", "MisbehavingClients"]

_HOST = "Host: app\r\n"
_UPGRADE = (
    f"{_HOST}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
_PARTIAL_BODY = f'{_HOST}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"session"'
_SUBSCRIBE = '{"subjects":["flood.>"]}'
_SUBSCRIBE_FRAME = f"\x81{chr(128 | len(_SUBSCRIBE))}\0\0\0\0{_SUBSCRIBE}"
"""A WebSocket frame with a mask of zeros (RFC 6455, section 5.2)."""

MISBEHAVIORS: Mapping[str, str] = {
    "a WebSocket that reads nothing, under a flood": (
        f"GET /nats/stream?profile=open HTTP/1.1\r\n{_UPGRADE}{_SUBSCRIBE_FRAME}"
    ),
    "an event stream that reads nothing, under a flood": (
        f"GET /nats/events?profile=open&subjects=flood.%3E HTTP/1.1\r\n{_HOST}\r\n"
    ),
    "a WebSocket that doesn't answer a close": f"GET /nats/stream?profile=open HTTP/1.1\r\n{_UPGRADE}",
    "an event stream that isn't closed": f"GET /nats/events?profile=open HTTP/1.1\r\n{_HOST}\r\n",
    "half a POST": f"POST /nats/subscribe?profile=open HTTP/1.1\r\n{_PARTIAL_BODY}",
    "an idle connection": f"GET /facts HTTP/1.1\r\n{_HOST}\r\n",
    "a WebSocket whose permissions don't arrive": f"GET /nats/stream?profile=hanging HTTP/1.1\r\n{_UPGRADE}",
    "an event stream whose permissions don't arrive": f"GET /nats/events?profile=hanging HTTP/1.1\r\n{_HOST}\r\n",
}
"""Everything that each of these clients sends."""

_BUFFER_BYTES = 4096
_MAX_TRIES = 200
_POLL_SECONDS = 0.01
_MAX_POLLS = 500


class MisbehavingClients:
    """One client for each of `MISBEHAVIORS`, connected to one worker."""

    def __init__(self, machine: Machine, worker: int) -> None:
        self._machine = machine
        self._worker = worker
        self._connections: list[socket.socket] = []

    async def connect(self) -> None:
        """Connect all clients to the worker.

        Raises:
            InjectionError: The worker accepted no connection.
        """
        for request in MISBEHAVIORS.values():
            connection = await self._connect_to_worker()
            connection.send(request.encode("latin-1"))

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    async def _connect_to_worker(self) -> socket.socket:
        for _ in range(_MAX_TRIES):
            connection = socket.socket()
            # A small buffer fills quickly if the client doesn't read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            host, _, port = self._machine.address.rpartition(":")
            connection.connect((host, int(port)))
            if await self._is_accepted_by_worker(connection):
                self._connections.append(connection)
                return connection
            connection.close()
        raise InjectionError(f"worker {self._worker} accepted no connection")

    async def _is_accepted_by_worker(self, connection: socket.socket) -> bool:
        for _ in range(_MAX_POLLS):
            inode = _peer_inode(self._worker, connection)
            if inode:
                return f"socket:[{inode}]" in _link_targets(self._worker)
            await asyncio.sleep(_POLL_SECONDS)
        raise InjectionError("no worker accepted a connection")


def _peer_inode(pid: int, connection: socket.socket) -> int:
    """Return the inode of the other end of the connection in the process's network; 0 until it is accepted."""
    ports = f":{connection.getpeername()[1]:04X}", f":{connection.getsockname()[1]:04X}"
    # proc_net_tcp(5): local address, remote address, ..., inode
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if (fields[1][-5:], fields[2][-5:]) == ports:
            return int(fields[9])
    return 0


def _link_targets(pid: int) -> set[str]:
    """Return the targets of the open file descriptors of a process, such as ``socket:[123]``."""
    return {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()}
