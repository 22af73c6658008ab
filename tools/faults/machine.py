"""One machine: a place, and there an app of several workers under Sanic's manager."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import aiohttp

from ..harness.processes import PROJECT, descendants, free_port
from ..harness.remote import end_with_parent
from .network import Place
from .workload import NotDoneError, until

__all__ = ["Machine", "has_ended", "open_files"]

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
_MOST_TRIES: Final = 500


class Machine:
    """What is done to the workers of one app, and what is seen of them.

    Attributes:
        address: Host and port, where all workers listen.
        ready: When each worker began to serve, by its process id; all that there ever were.
        stopping: When each began to stop, as it has said.
    """

    def __init__(self, place: Place) -> None:
        with place.entered():
            self._port = free_port()
        self._place = place
        self.address: Final = f"{place.host}:{self._port}"
        self.ready: dict[int, float] = {}
        self.stopping: dict[int, float] = {}
        self._process: Process | None = None

    @contextlib.asynccontextmanager
    async def running(self, settings: Mapping[str, Any], workers: int) -> AsyncIterator["Machine"]:
        """Have the app serve, by so many workers.

        Raises:
            NotDoneError: It does not; the message holds its last words.
        """
        options = (json.dumps(settings), self._place.host, str(self._port), str(workers))
        command = self._place.command(sys.executable, "-m", "tools.faults.workers", *options)
        with tempfile.TemporaryFile() as log:
            # Sanic's manager may kill its whole process group, which must not be ours.
            process = self._process = await asyncio.create_subprocess_exec(
                *command, stdout=PIPE, stderr=log, cwd=PROJECT, start_new_session=True, preexec_fn=end_with_parent
            )
            listening = asyncio.create_task(self._listen(process))
            try:
                with _last_words(log):
                    await until(lambda: len(self.ready) == workers, "all workers serve", _START_SECONDS)
                yield self
            finally:
                await _end(process)
                await listening

    @property
    def processes(self) -> list[int]:
        """All processes of the app, Sanic's own included."""
        assert self._process is not None
        return [pid for pid in descendants(self._process.pid) if not has_ended(pid)]

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, int, Any]:
        """Ask whichever worker takes the connection; the worker, the status, and the answer."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.request(method, f"http://{self.address}{path}", json=body) as response,
        ):
            text = await response.text()
            return int(response.headers["x-worker"]), response.status, json.loads(text or "null")

    async def ask_each(self, method: str, path: str, body: Any = None) -> dict[int, tuple[int, Any]]:
        """Ask until each of the workers has answered; status and answer by worker.

        Raises:
            NotDoneError: Some never take a connection.
        """
        workers, answers = set((await self.workers()).values()), {}
        for _ in range(_MOST_TRIES):
            worker, status, answer = await self.ask(method, path, body)
            answers[worker] = status, answer
            if workers <= answers.keys():
                return answers
        raise NotDoneError(f"of {len(workers)} workers only {len(answers)} have answered")

    async def workers(self) -> dict[str, int]:
        """The process ids of the workers, dead ones included, by Sanic's names for them."""
        _, _, found = await self.ask("GET", "/facts")
        workers: dict[str, int] = found["workers"]
        return workers

    async def restart(self, name: str, *, dead: bool = False) -> int:
        """Have Sanic restart one worker; returns the new one as soon as it serves.

        Sanic brings back no worker that has died by itself. One that lives goes on until the new one serves.
        """
        before = set(self.ready)
        await self.ask("POST", f"/restart/{name}{'' if dead else '?overlap=1'}")
        await until(lambda: len(self.ready) > len(before), f"{name} is started again", _START_SECONDS)
        (worker,) = self.ready.keys() - before
        return worker

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        moments = {b"ready": self.ready, b"stopping": self.stopping}
        async for line in process.stdout:
            what, pid, at = line.split()
            moments[what][int(pid)] = float(at)


@contextlib.contextmanager
def _last_words(log: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        log.seek(0)
        raise NotDoneError(f"{error}: {log.read()[-2000:].decode(errors='replace')}") from None


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _END_SECONDS)
    # Workers that have outlived their manager.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def has_ended(pid: int) -> bool:
    """Whether the process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def open_files(pid: int) -> int:
    """How many the process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
