"""TCP connections to host names with several addresses, as RFC 8305 (Happy Eyeballs) recommends.

An address that doesn't answer delays the attempt with the next one by a fraction of a second. An address that accepted
the connection, but then wasn't a NATS server, is tried only if no other accepts in half of the time.
"""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from typing import TypeAlias

from aiohappyeyeballs import AddrInfoType, start_connection

__all__ = ["Address", "Addresses"]

_ATTEMPT_DELAY_SECONDS = 0.25  # RFC 8305, section 5
_MAX_REMEMBERED = 100

Address: TypeAlias = tuple[str, int]
"""An IP address and a port."""


class Addresses:
    """The addresses of NATS servers, in an order that depends on earlier attempts."""

    def __init__(self) -> None:
        self._unproven: dict[Address, None] = {}
        """The addresses that accepted a connection since they last were a NATS server, the oldest first."""

    async def connect(self, host: str, port: int, seconds: float) -> tuple[socket.socket, Address]:
        """Connect to the first address of a host that accepts a connection.

        Args:
            host: A host name or an IP address.
            port: The port.
            seconds: The time that the caller allows. Each address is tried before it ends.

        Returns:
            The connected socket, and its address for `proven`.

        Raises:
            OSError: The name has no address, or no address accepts a connection.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        others = [each for each in found if (each[4][0], port) not in self._unproven]
        connected = None
        if 0 < len(others) < len(found):
            with contextlib.suppress(OSError):
                connected = await _race(others, seconds / 2)
        connected = connected or await _race(found, seconds)
        try:
            address = (connected.getpeername()[0], port)
        except OSError:
            connected.close()
            raise ConnectionResetError("the peer has closed the connection") from None
        self._unproven.pop(address, None)
        self._unproven[address] = None
        if len(self._unproven) > _MAX_REMEMBERED:
            del self._unproven[next(iter(self._unproven))]
        return connected, address

    def proven(self, address: Address) -> None:
        """Note that there is a NATS server at the address."""
        self._unproven.pop(address, None)


async def _race(addresses: Sequence[AddrInfoType], seconds: float) -> socket.socket:
    """Connect to the first address that accepts.

    Raises:
        OSError: None accepts within the time.
    """
    delay = min(_ATTEMPT_DELAY_SECONDS, seconds / (len(addresses) + 1))
    async with asyncio.timeout(seconds):
        return await start_connection(addresses, happy_eyeballs_delay=delay)
