"""Clients that subscribe from a point in a stream, and read until they have caught up."""

import re
import socket
import time
from collections.abc import Mapping
from typing import Any

from ..harness.processes import raise_file_limit
from .client_protocols import BridgeHistory
from .connect_phase import connect_clients
from .payloads import find_stamps
from .subscribers import Subscribers, delivery_error

__all__ = ["ReturningClients"]

_POSITION = re.compile(rb'"type":"caught_up".*?"position":"([^"]*)"')


class ReturningClients:
    """Clients that connect again and again.

    Args:
        port: The port of the server.
        subscribers: The clients and their subjects.
    """

    def __init__(self, port: int, subscribers: Subscribers) -> None:
        raise_file_limit()
        self._port = port
        self._subscribers = subscribers
        self._sockets: list[socket.socket] = []
        self._received: list[bytes] = []

    def connect(self, start: Mapping[str, Any], concurrency: int) -> None:
        """Connect all clients, and read until they have caught up.

        Args:
            start: The fields of their command that name the point from which they subscribe.
            concurrency: The largest number of clients that connect at the same time.
        """
        indexes = range(self._subscribers.size)
        clients = connect_clients(self._port, BridgeHistory(start), self._subscribers, indexes, concurrency)
        self._sockets = [client.socket for client in clients.values()]
        self._received = [client.received for client in clients.values()]

    def disconnect(self) -> None:
        """Disconnect all clients."""
        for each in self._sockets:
            each.close()
        self._sockets = []

    def position(self) -> str:
        """Return the position of the first client when it had caught up.

        Raises:
            RuntimeError: The server has sent none.
        """
        found = _POSITION.search(self._received[0])
        if found is None:
            raise RuntimeError(f"No position: {self._received[0][-300:]!r}")
        return found[1].decode()

    def errors(self, first: int, end: int) -> list[str]:
        """Compare what each client has received with the messages from ``first`` up to, but without, ``end``."""
        errors = []
        for client, received in enumerate(self._received):
            numbers = [number for number, _ in find_stamps(received)[0]]
            error = delivery_error(self._subscribers.expected(client, first, end), numbers)
            if error is not None:
                errors.append(f"client {client}: {error}")
        return errors

    def repeat(self, start: Mapping[str, Any], seconds: float) -> int:
        """Connect and disconnect all clients again and again for this time; return the number of times."""
        count = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.connect(start, self._subscribers.size)
            self.disconnect()
            count += 1
        return count
