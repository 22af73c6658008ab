"""Small questions to another worker, before it gets a whole command.

A question is answered at once and may be repeated. If the worker doesn't exist, that is known within a second:

- NATS reports that the worker's subject has no subscriber. But it doesn't if a client of the account subscribes to
  everything, and a server without headers never does.
- If neither an answer nor that report arrives, the worker may exist and be slow. So NATS is asked about a worker that
  surely doesn't exist. If it reports that one, the silent worker exists. If it doesn't, although it delivers what this
  worker sends to itself, the silent worker is taken for gone.
"""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from ..protocol.session_ids import new_worker_id
from .control_channel import UnknownWorkerError
from .known_workers import KnownWorkers

__all__ = ["Questions", "RequestChannel"]

_FIRST_SECONDS = 0.3
_RECONNECT_SECONDS = 0.25
"""Time within which a worker that has just lost its NATS server reconnects to another one."""
_ABSENT_SECONDS = 0.5
_OWN_SECONDS = 0.4
"""Shorter, because NATS has reported the absent worker by the time at which it delivers the later request."""


class RequestChannel(Protocol):
    """A channel to the other workers, implemented by ControlChannel."""

    @property
    def worker(self) -> str:
        """The id of this worker."""

    def check_ready(self) -> None:
        """Raise ConnectionError unless the workers can reach each other."""

    def request(self, worker: str, payload: bytes, seconds: float) -> Awaitable[bytes]:
        """Send a request to a worker and return its reply."""


class Questions:
    """The questions of this worker to the others.

    Args:
        channel: Sends them.
        known: The workers that exist, as far as this worker knows.
    """

    def __init__(self, channel: RequestChannel, known: KnownWorkers) -> None:
        self._channel = channel
        self._known = known

    def check_existence(self, worker: str) -> None:
        """Check what this worker knows about another one. Nothing is sent.

        Raises:
            ConnectionError: NATS is disconnected, or doesn't let the workers reach each other.
            UnknownWorkerError: The worker doesn't exist.
        """
        self._channel.check_ready()
        if not self._known.may_exist(worker, asyncio.get_running_loop().time()):
            raise UnknownWorkerError(worker)

    async def ask(self, worker: str, question: bytes, seconds: float) -> bytes:
        """Ask a worker a question; return its answer.

        Raises:
            ConnectionError: NATS is disconnected, or doesn't let the workers reach each other.
            UnknownWorkerError: The worker doesn't exist. Raised within a second.
            TimeoutError: The worker exists, but has not answered within ``seconds``.
        """
        try:
            return await self._channel.request(worker, question, _FIRST_SECONDS)
        except TimeoutError:
            return await self._ask_silent(worker, question, seconds)
        except UnknownWorkerError:
            await asyncio.sleep(_RECONNECT_SECONDS)
        try:
            return await self._channel.request(worker, question, _FIRST_SECONDS)
        except TimeoutError:
            return await self._ask_silent(worker, question, seconds)

    async def _ask_silent(self, worker: str, question: bytes, seconds: float) -> bytes:
        again = asyncio.ensure_future(self._channel.request(worker, question, seconds))
        absence = asyncio.ensure_future(self._hides_absence())
        try:
            await asyncio.wait({again, absence}, return_when=asyncio.FIRST_COMPLETED)
            if not again.done() and absence.result():
                raise UnknownWorkerError(worker)
            return await again
        finally:
            again.cancel()
            absence.cancel()
            await asyncio.wait({again, absence})

    async def _hides_absence(self) -> bool:
        """Return whether NATS delivers requests, but doesn't report that a worker is absent."""
        absent, own = await asyncio.gather(
            self._channel.request(new_worker_id(), b"", _ABSENT_SECONDS),
            self._channel.request(self._channel.worker, b"", _OWN_SECONDS),
            return_exceptions=True,
        )
        return isinstance(absent, TimeoutError) and not isinstance(own, BaseException)
