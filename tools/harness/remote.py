"""Objects in processes of their own, so that their work uses no CPU time of the caller's process."""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

__all__ = ["Remote", "RemoteError", "end_with_parent", "remote"]

_PR_SET_PDEATHSIG = 1
_STOP_SECONDS = 5.0

T = TypeVar("T")


class RemoteError(RuntimeError):
    """An exception that a method of the remote object has raised."""


class Remote(Generic[T]):
    """A handle on an object in another process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, method: Callable[..., Any], *arguments: Any) -> None:
        """Call a method of the object's class without waiting. Call `result` before the next method."""
        self._connection.send((method.__name__, arguments))

    def result(self) -> Any:
        """Wait for the method that was begun, and return its result.

        Raises:
            RemoteError: The method has raised an exception, or its process has ended.
        """
        try:
            succeeded, value = self._connection.recv()
        except EOFError:
            raise RemoteError("The process has ended") from None
        if not succeeded:
            raise RemoteError(value)
        return value

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call a method of the object's class, and return its result."""
        self.begin(method, *arguments)
        return self.result()


@contextlib.contextmanager
def remote(factory: Callable[..., T], *arguments: Any) -> Iterator[Remote[T]]:
    """Create an object in a new process, which ends with the context."""
    context = multiprocessing.get_context("spawn")
    connection, child_connection = context.Pipe()
    process = context.Process(target=_serve, args=(child_connection, factory, arguments), daemon=True)
    process.start()
    child_connection.close()
    try:
        yield Remote(connection)
    finally:
        connection.close()
        process.terminate()
        process.join(_STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send a signal to this process when the thread that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    # Ctrl-C reaches every process of the terminal. The parent ends this one itself.
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
