"""Simulated hosts: network namespaces with addresses of their own, and a switch between them (Linux, root)."""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator

__all__ = ["LOOPBACK", "Host", "Network", "network"]

_CLONE_NEWNET = 0x4000_0000
_PREFIX = "198.51.100."  # RFC 5737: reserved for documentation
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    """A network namespace in which a server can run.

    Attributes:
        address: The IP address, which all hosts can reach.
    """

    def __init__(self, address: str, namespace: int | None) -> None:
        self.address = address
        self._namespace = namespace

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Switch this thread to the host, for sockets and processes that it creates. The context must not await."""
        if self._namespace is None:
            yield
            return
        with _opened("/proc/thread-self/ns/net") as before:
            _checked(_libc.setns(self._namespace, _CLONE_NEWNET))
            try:
                yield
            finally:
                _checked(_libc.setns(before, _CLONE_NEWNET))

    def command(self, *command: str) -> list[str]:
        """Return a command that executes this command on the host, in the same process."""
        if self._namespace is None:
            return list(command)
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}", *command]


LOOPBACK = Host("127.0.0.1", None)
"""The machine itself."""


class Network:
    """The hosts and their switch.

    Attributes:
        isolated: Each host is a namespace of its own. Otherwise all hosts are the machine's loopback.
    """

    def __init__(self, switch: Host | None) -> None:
        self.isolated = switch is not None
        self._switch = switch
        self._stack = contextlib.ExitStack()
        self._count = 0

    def add_host(self) -> Host:
        """Add a host, and return it."""
        if self._switch is None:
            return LOOPBACK
        self._count += 1
        namespace = self._stack.enter_context(_namespace())
        host = Host(f"{_PREFIX}{self._count + 1}", namespace)
        peer = ("peer", "name", "uplink", "netns", f"/proc/{os.getpid()}/fd/{namespace}")
        with self._switch.entered():
            _ip("link", "add", f"port{self._count}", "type", "veth", *peer)
            _ip("link", "set", f"port{self._count}", "master", "switch", "up")
        with host.entered():
            _ip("address", "add", f"{host.address}/24", "dev", "uplink")
            _ip("link", "set", "uplink", "up")
            _ip("link", "set", "lo", "up")
        return host

    def close(self) -> None:
        """Close all namespaces. The kernel removes those in which no process runs."""
        self._stack.close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Create a network whose hosts this thread can reach. Without the permission for it, all hosts are loopback."""
    with contextlib.ExitStack() as stack:
        try:
            switch = Host(f"{_PREFIX}1", stack.enter_context(_namespace()))
        except PermissionError:
            yield Network(None)
            return
        stack.enter_context(switch.entered())
        _ip("link", "add", "switch", "type", "bridge")
        _ip("address", "add", f"{switch.address}/24", "dev", "switch")
        _ip("link", "set", "switch", "up")
        _ip("link", "set", "lo", "up")
        created = Network(switch)
        stack.callback(created.close)
        yield created


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """Create a namespace, and yield the only file descriptor that keeps it. It doesn't outlive this process."""
    opened: list[int | OSError] = []

    def create() -> None:
        try:
            _checked(_libc.unshare(_CLONE_NEWNET))
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            opened.append(error)

    # unshare(2) moves the calling thread into the new namespace, so it runs in a thread of its own.
    thread = threading.Thread(target=create)
    thread.start()
    thread.join()
    (namespace,) = opened
    if isinstance(namespace, OSError):
        raise namespace
    try:
        yield namespace
    finally:
        os.close(namespace)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)  # noqa: S603, S607 - our own arguments, a system tool
