"""What the kernel does, and knows, about the TCP connection of a client."""

import asyncio
import contextlib
import socket
import sys

__all__ = ["bound_silence", "unacknowledged"]


def bound_silence(transport: asyncio.Transport, seconds: float) -> None:
    """Have the kernel give the connection up when nothing sent is acknowledged, or taken (RFC 5482)."""
    connection = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
        # OSError: a Unix socket has no such option. ValueError: uvloop's, where the connection is being closed.
        with contextlib.suppress(OSError, ValueError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def unacknowledged(transport: asyncio.Transport) -> bool:
    """Whether the kernel holds bytes that the client, or the proxy before it, has not taken; where it can be told."""
    connection = transport.get_extra_info("socket")
    if not sys.platform.startswith("linux") or connection is None:
        return False
    from fcntl import ioctl
    from termios import TIOCOUTQ

    with contextlib.suppress(OSError, ValueError):
        return any(ioctl(connection.fileno(), TIOCOUTQ, bytes(4)))
    return False
