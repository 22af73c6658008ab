"""A host name with two addresses, of which the first doesn't answer, for one process (Linux)."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from ..harness.unanswering import unanswering
from .network import Host

__all__ = ["LIVE", "NAME", "UNANSWERING", "own_hosts", "unanswering_host"]

NAME = "nats.faults.test"  # RFC 6761: reserved for tests
UNANSWERING = "127.0.3.1"
"""The first address of the name."""
LIVE = Host("127.0.3.2", None)
"""The host of the second address. The resolver keeps the order, because both are equally far from 127.0.0.1."""

_NAMESPACE_COMMAND = "unshare"
_SCRIPT = 'mount --bind "$0" /etc/hosts && exec setpriv --pdeathsig KILL "$@"'


@contextlib.contextmanager
def own_hosts() -> Iterator[Sequence[str] | None]:
    """Create a hosts file that contains the name.

    Yields:
        The beginning of a command whose process has this file as its ``/etc/hosts``, or None if mount namespaces
        can't be created. The system's resolver can't be replaced in another way, because uvloop calls that of C.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".hosts") as file:
        file.write(f"127.0.0.1 localhost\n{UNANSWERING} {NAME}\n{LIVE.address} {NAME}\n")
        file.flush()
        # A user namespace gives another user than root the permission for a mount namespace.
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        # A new user namespace cancels the signal that ends the process with its parent. setpriv requests it again.
        prefix = (_NAMESPACE_COMMAND, *user, "--mount", "sh", "-c", _SCRIPT, file.name)
        yield prefix if _succeeds((*prefix, "true")) else None


def unanswering_host(port: int) -> contextlib.AbstractContextManager[None]:
    """Let nothing answer at the first address of the name."""
    return unanswering(UNANSWERING, port)


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    except OSError:
        return False  # a command of util-linux is missing
