"""Kernel options and counters of a client's TCP connection."""

import asyncio
import contextlib
import socket
import sys

__all__ = ["has_unacknowledged_data", "set_user_timeout"]


def set_user_timeout(transport: asyncio.Transport, seconds: float) -> None:
    """Make the kernel close the connection if sent data isn't acknowledged within ``seconds`` (RFC 5482)."""
    connection = transport.get_extra_info("socket")
    if hasattr(socket, "TCP_USER_TIMEOUT") and connection is not None:
        # OSError: a Unix socket has no such option. ValueError: uvloop's socket is being closed.
        with contextlib.suppress(OSError, ValueError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def has_unacknowledged_data(transport: asyncio.Transport) -> bool:
    """Return whether the kernel holds bytes that the client, or a proxy before it, has not acknowledged.

    Always false if the platform or the transport can't report it.
    """
    connection = transport.get_extra_info("socket")
    if not sys.platform.startswith("linux") or connection is None:
        return False
    from fcntl import ioctl
    from termios import TIOCOUTQ

    with contextlib.suppress(OSError, ValueError):
        return any(ioctl(connection.fileno(), TIOCOUTQ, bytes(4)))
    return False
