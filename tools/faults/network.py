"""Machines that are none: network namespaces with addresses of their own, and a switch between them (Linux, root)."""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Final

__all__ = ["LOOPBACK", "Network", "Place", "network"]

_CLONE_NEWNET: Final = 0x4000_0000
_PREFIX: Final = "198.51.100."  # RFC 5737: documentation only
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Place:
    """Where a server can stand.

    Attributes:
        host: Its address, for all others too.
    """

    def __init__(self, host: str, namespace: int | None) -> None:
        self.host: Final = host
        self._namespace = namespace

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread opens or starts meanwhile is there; nothing may be awaited in between."""
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
        """The command that runs this command there, as the same process."""
        if self._namespace is None:
            return list(command)
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}", *command]


LOOPBACK: Final = Place("127.0.0.1", None)
"""This machine itself."""


class Network:
    """All places.

    Attributes:
        isolated: Each place is a namespace; else all of them are this machine's loopback.
    """

    def __init__(self, switch: Place | None) -> None:
        self.isolated: Final = switch is not None
        self._switch = switch
        self._stack = contextlib.ExitStack()
        self._places = 0

    def place(self) -> Place:
        """One more."""
        if self._switch is None:
            return LOOPBACK
        self._places += 1
        namespace = self._stack.enter_context(_namespace())
        place = Place(f"{_PREFIX}{self._places + 1}", namespace)
        far = ("peer", "name", "uplink", "netns", f"/proc/{os.getpid()}/fd/{namespace}")
        with self._switch.entered():
            _ip("link", "add", f"port{self._places}", "type", "veth", *far)
            _ip("link", "set", f"port{self._places}", "master", "switch", "up")
        with place.entered():
            _ip("address", "add", f"{place.host}/24", "dev", "uplink")
            _ip("link", "set", "uplink", "up")
            _ip("link", "set", "lo", "up")
        return place

    def close(self) -> None:
        """Let go of all places; the kernel removes those in which nothing runs."""
        self._stack.close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """A network, from which this thread reaches all places; where none may be made, loopback."""
    with contextlib.ExitStack() as stack:
        try:
            switch = Place(f"{_PREFIX}1", stack.enter_context(_namespace()))
        except PermissionError:
            yield Network(None)
            return
        stack.enter_context(switch.entered())
        _ip("link", "add", "switch", "type", "bridge")
        _ip("address", "add", f"{switch.host}/24", "dev", "switch")
        _ip("link", "set", "switch", "up")
        _ip("link", "set", "lo", "up")
        made = Network(switch)
        stack.callback(made.close)
        yield made


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """A new namespace, as a file descriptor, which alone keeps it: nothing of it outlives this process."""
    opened: list[int | OSError] = []

    def make() -> None:
        try:
            _checked(_libc.unshare(_CLONE_NEWNET))
            opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            opened.append(error)

    # A namespace belongs to a thread; this one has no other use.
    thread = threading.Thread(target=make)
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
    subprocess.run(["ip", *arguments], check=True)  # noqa: S603, S607 - our own arguments, a tool of the system
