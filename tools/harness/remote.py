"""An object that lives in a process of its own, so that what it does costs the others nothing but its core."""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final, Generic, TypeVar

__all__ = ["Remote", "RemoteError", "end_with_parent", "remote"]

_PR_SET_PDEATHSIG: Final = 1
_END_SECONDS: Final = 5.0

T = TypeVar("T")


class RemoteError(RuntimeError):
    """What the object has raised."""


class Remote(Generic[T]):
    """The near end of the object."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, method: Callable[..., Any], *arguments: Any) -> None:
        """Call a method of the object's class, and do not wait; `result` has to be called before the next."""
        self._connection.send((method.__name__, arguments))

    def result(self) -> Any:
        """What the method that was begun returns.

        Raises:
            RemoteError: It has raised, or its process has ended.
        """
        try:
            succeeded, value = self._connection.recv()
        except EOFError:
            raise RemoteError("The process has ended") from None
        if not succeeded:
            raise RemoteError(value)
        return value

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of the object's class."""
        self.begin(method, *arguments)
        return self.result()


@contextlib.contextmanager
def remote(factory: Callable[..., T], *arguments: Any) -> Iterator[Remote[T]]:
    """Make an object in a new process, which ends with the context."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(far, factory, arguments), daemon=True)
    process.start()
    far.close()
    try:
        yield Remote(near)
    finally:
        near.close()
        process.terminate()
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that has started it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    # Ctrl-C reaches the whole terminal; the parent ends this process in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()
    instance = factory(*arguments)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            name, values = connection.recv()
            try:
                answer = (True, getattr(instance, name)(*values))
            except Exception as error:
                answer = (False, f"{type(error).__name__}: {error}")
            connection.send(answer)
