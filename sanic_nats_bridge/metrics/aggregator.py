"""The metrics of all workers of a server, for whichever of them is asked.

Each worker writes its own each second, and whenever it is asked: what it has once told of itself is then in
its file, and nobody tells less of it later. What a process has counted goes on with the next that is the
same worker.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from .definitions import Readings, combined, readings
from .stats import Stats
from .worker_files import WorkerFiles

__all__ = ["MetricsAggregator"]

logger = logging.getLogger("sanic.root.nats_bridge")

_WRITE_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 1.0
_decode: Final = msgspec.json.Decoder(Readings).decode
_encode: Final = msgspec.json.Encoder().encode


class MetricsAggregator:
    """Shows one worker's metrics to the others, and theirs to whoever asks; alone without a folder."""

    def __init__(self, take_stats: Callable[[], Stats], app: str, worker: str, folder: Path | None) -> None:
        self._take_stats = take_stats
        self._worker = worker
        self._files = None if folder is None else WorkerFiles(folder, app, worker)
        self._before: Readings = {}
        self._lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._told = False

    async def start(self) -> None:
        """Go on from what was counted before, and begin to write."""
        if self._files is None:
            return
        try:
            self._before = _read(await asyncio.to_thread(self._files.claim))
        except OSError as error:
            self._tell(error)
        self._stopping.clear()
        self._writer = asyncio.create_task(self._write_on(self._files), name="natsbridge-metrics")

    async def stop(self) -> None:
        """Write for the last time."""
        if self._files is None or self._writer is None:
            return
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._writer
                await self._write(self._files)
        self._files.release()

    async def gather(self) -> dict[str, Readings]:
        """The metrics of each worker, by its name."""
        if self._files is None:
            return {self._worker: readings(self._take_stats())}
        parts = {self._worker: [(await self._write(self._files), True)]}
        for worker, content, alive in await asyncio.to_thread(lambda files: list(files.others()), self._files):
            parts.setdefault(worker, []).append((_read(content), alive))
        return {worker: combined(of_worker) for worker, of_worker in parts.items()}

    async def _write_on(self, files: WorkerFiles) -> None:
        while not self._stopping.is_set():
            await self._write(files)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WRITE_SECONDS):
                    await self._stopping.wait()

    async def _write(self, files: WorkerFiles) -> Readings:
        # A thread goes on when whoever waits for it is cancelled: no other may write meanwhile.
        return await asyncio.shield(asyncio.create_task(self._write_in_turn(files)))

    async def _write_in_turn(self, files: WorkerFiles) -> Readings:
        async with self._lock:
            own = combined([(readings(self._take_stats()), True), (self._before, False)])
            try:
                # In a thread: a disk that hangs must hold up nobody's messages.
                await asyncio.to_thread(files.write, _encode(own))
            except OSError as error:
                self._tell(error)
            return own

    def _tell(self, error: OSError) -> None:
        # The folder goes with the main process, which may end before its workers do.
        if not self._told and not isinstance(error, FileNotFoundError):
            self._told = True
            logger.warning("Metrics of this worker cannot be written for the others: %s", error)


def _read(content: bytes) -> Readings:
    try:
        return _decode(content)
    except msgspec.DecodeError:
        return {}
