"""The metrics of all workers of a server, from any one of them.

Each worker writes its own values to a file every second, and whenever it gathers those of all. So a counter that is
gathered later is never smaller. When a worker's process is replaced, the next one continues its counters.
"""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..log_limits import limited_logger
from .definitions import Readings, combined, readings
from .stats import Stats
from .worker_files import WorkerFiles

__all__ = ["MetricsAggregator"]

logger = limited_logger()

_WRITE_SECONDS = 1.0
_STOP_SECONDS = 1.0
_decode = msgspec.json.Decoder(Readings).decode
_encode = msgspec.json.Encoder().encode


class MetricsAggregator:
    """The metrics of this worker and of the others.

    Args:
        take_stats: Returns the stats of this worker.
        app: The name of the app.
        worker: The name of this worker.
        folder: The folder that the workers share; without one, this worker reports its own metrics only.
    """

    def __init__(self, take_stats: Callable[[], Stats], app: str, worker: str, folder: Path | None) -> None:
        self._take_stats = take_stats
        self._worker = worker
        self._files = None if folder is None else WorkerFiles(folder, app, worker)
        self._previous: Readings = {}
        self._lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._logged = False

    async def start(self) -> None:
        """Continue the counters of the worker's previous process, and begin to write."""
        if self._files is None:
            return
        try:
            self._previous = _read(await asyncio.to_thread(self._files.claim))
        except OSError as error:
            self._log_once(error)
        # New ones, because they belong to the event loop in which they were first waited for.
        self._lock, self._stopping = asyncio.Lock(), asyncio.Event()
        self._writer = asyncio.create_task(self._write_periodically(self._files), name="natsbridge-metrics")

    async def stop(self) -> None:
        """Write the last values."""
        if self._files is None or self._writer is None:
            return
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._writer
                await self._write(self._files)
        self._files.release()

    async def gather(self) -> dict[str, Readings]:
        """Return the metrics of each worker by its name."""
        if self._files is None:
            return {self._worker: readings(self._take_stats())}
        parts = {self._worker: [(await self._write(self._files), True)]}
        for worker, content, alive in await asyncio.to_thread(lambda files: list(files.others()), self._files):
            parts.setdefault(worker, []).append((_read(content), alive))
        return {worker: combined(of_worker) for worker, of_worker in parts.items()}

    async def _write_periodically(self, files: WorkerFiles) -> None:
        while not self._stopping.is_set():
            await self._write(files)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WRITE_SECONDS):
                    await self._stopping.wait()

    async def _write(self, files: WorkerFiles) -> Readings:
        # The thread continues if its caller is cancelled, and no other may write at the same time.
        return await asyncio.shield(asyncio.create_task(self._write_locked(files)))

    async def _write_locked(self, files: WorkerFiles) -> Readings:
        async with self._lock:
            own = combined([(readings(self._take_stats()), True), (self._previous, False)])
            try:
                # In a thread, because a disk that hangs must not delay messages.
                await asyncio.to_thread(files.write, _encode(own))
            except OSError as error:
                self._log_once(error)
            return own

    def _log_once(self, error: OSError) -> None:
        # The main process removes the folder, and may end before its workers.
        if not self._logged and not isinstance(error, FileNotFoundError):
            self._logged = True
            logger.warning("Cannot write the metrics of this worker for the others: %s", error)


def _read(content: bytes) -> Readings:
    try:
        return _decode(content)
    except msgspec.DecodeError:
        return {}
