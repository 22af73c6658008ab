"""A simulated machine: a host of the network, with an app of several workers under Sanic's manager."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import IO, Any

import aiohttp

from ..harness.processes import PROJECT, descendants, free_port, has_ended
from ..harness.remote import end_with_parent
from .network import Host
from .workload import InjectionError, until

__all__ = ["Machine"]

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_MAX_TRIES = 500


class Machine:
    """The app of one machine, and its workers.

    Attributes:
        address: The host and port on which all workers listen.
        ready: The time at which each worker began to serve, by its process id. Includes workers that have ended.
        stopping: The time at which each worker began to stop, as it has reported.
    """

    def __init__(self, host: Host) -> None:
        with host.entered():
            self._port = free_port()
        self._host = host
        self.address = f"{host.address}:{self._port}"
        self.ready: dict[int, float] = {}
        self.stopping: dict[int, float] = {}
        self._process: Process | None = None

    @contextlib.asynccontextmanager
    async def running(self, settings: Mapping[str, Any], workers: int) -> AsyncIterator["Machine"]:
        """Run the app with this number of workers. After its end it can be run again, on the same port.

        Raises:
            InjectionError: The app did not start. The message contains the end of its log.
        """
        before = len(self.ready)
        options = (json.dumps(settings), self._host.address, str(self._port), str(workers))
        command = self._host.command(sys.executable, "-m", "tools.faults.workers", *options)
        with tempfile.TemporaryFile() as log:
            # Sanic's manager may kill its whole process group, so it needs one of its own.
            process = self._process = await asyncio.create_subprocess_exec(
                *command, stdout=PIPE, stderr=log, cwd=PROJECT, start_new_session=True, preexec_fn=end_with_parent
            )
            reading = asyncio.create_task(self._read_reports(process))
            try:
                with _end_of_log(log):
                    await until(lambda: len(self.ready) == before + workers, "all workers serve", _START_SECONDS)
                yield self
            finally:
                await _stop(process)
                await reading

    @property
    def processes(self) -> list[int]:
        """All processes of the app, including those of Sanic itself."""
        assert self._process is not None
        return [pid for pid in descendants(self._process.pid) if not has_ended(pid)]

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, int, Any]:
        """Send a request to any worker.

        Returns:
            The process id of the worker, the status, and the JSON of the response.
        """
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.request(method, f"http://{self.address}{path}", json=body) as response,
        ):
            text = await response.text()
            return int(response.headers["x-worker"]), response.status, json.loads(text or "null")

    async def request_each(self, method: str, path: str, body: Any = None) -> dict[int, tuple[int, Any]]:
        """Repeat a request until each worker has answered.

        Returns:
            The status and the JSON of the response, by the process id of the worker.

        Raises:
            InjectionError: A worker never accepted a connection.
        """
        workers, answers = set((await self.workers()).values()), {}
        for _ in range(_MAX_TRIES):
            worker, status, answer = await self.request(method, path, body)
            answers[worker] = status, answer
            if workers <= answers.keys():
                return answers
        raise InjectionError(f"only {len(answers)} of {len(workers)} workers have answered")

    async def workers(self) -> dict[str, int]:
        """Return the process ids of the workers, including ended ones, by Sanic's names for them."""
        _, _, found = await self.request("GET", "/facts")
        workers: dict[str, int] = found["workers"]
        return workers

    async def restart(self, name: str, *, dead: bool = False) -> int:
        """Have Sanic restart a worker, and wait until the new one serves.

        Sanic doesn't restart a worker that has died. A living worker continues until the new one serves.

        Args:
            name: Sanic's name for the worker.
            dead: The worker has died.

        Returns:
            The process id of the new worker.
        """
        before = set(self.ready)
        await self.request("POST", f"/restart/{name}{'' if dead else '?overlap=1'}")
        await until(lambda: len(self.ready) > len(before), f"{name} has restarted", _START_SECONDS)
        (worker,) = self.ready.keys() - before
        return worker

    async def _read_reports(self, process: Process) -> None:
        assert process.stdout is not None
        events = {b"ready": self.ready, b"stopping": self.stopping}
        async for line in process.stdout:
            event, pid, at = line.split()
            events[event][int(pid)] = float(at)


@contextlib.contextmanager
def _end_of_log(log: IO[bytes]) -> Iterator[None]:
    """Turn a timeout into an error that contains the end of the log."""
    try:
        yield
    except TimeoutError as error:
        log.seek(0)
        raise InjectionError(f"{error}: {log.read()[-2000:].decode(errors='replace')}") from None


async def _stop(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    # Workers may have outlived their manager.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
