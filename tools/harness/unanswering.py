"""An address at which nothing answers (Linux)."""

import contextlib
import socket
from collections.abc import Iterator

__all__ = ["unanswering"]

_FULL_SECONDS = 0.2


@contextlib.contextmanager
def unanswering(address: str, port: int) -> Iterator[None]:
    """Let nothing answer at an address of the loopback interface.

    A listener with a full backlog occupies it. Linux drops the packets of all further connections.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        while True:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect((address, port))
            filler.settimeout(_FULL_SECONDS)
            try:
                filler.send(b"x")
            except OSError:
                break
        yield
