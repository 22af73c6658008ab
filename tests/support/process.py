"""Apps in processes of their own, for tests that measure them or serve them differently."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from tests.support.bridge import WAIT_SECONDS, free_port, until

PROJECT = Path(__file__).parents[2]

_STARTUP = Path(__file__).parent / "startup"

APP_ENVIRONMENT: Mapping[str, str] = {
    "PYTHONPATH": os.pathsep.join([str(_STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]),
    # If aiohttp is installed, nats-py imports it, which takes a third of an app's start. Users seldom have it.
    "ABSENT_PACKAGES": "aiohttp",
}
"""The additional environment of an app's process."""


class ManagerReady:
    """A marker for the moment when the manager of an app's workers has seen them and handles signals."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "ready"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """For the process of the manager."""
        return {**APP_ENVIRONMENT, "MANAGER_READY_FILE": str(self._file)}

    def __call__(self) -> bool:
        return self._file.exists()


@dataclass
class AppProcess:
    """A running ``tests.support.apps.plain``."""

    process: Process
    ports: list[int]

    @property
    def folder(self) -> Path:
        return Path(f"/proc/{self.process.pid}")

    @property
    def open_files(self) -> int:
        return sum(1 for _ in (self.folder / "fd").iterdir())

    @property
    def resident_bytes(self) -> int:
        (line,) = (line for line in (self.folder / "status").read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    async def line(self, seconds: float = WAIT_SECONDS) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(seconds):
            return (await self.process.stdout.readline()).decode().strip()


@contextlib.asynccontextmanager
async def app_process(*bridges: Mapping[str, Any], wrapper: tuple[str, ...] = ()) -> AsyncIterator[AppProcess]:
    """Serve an app for each of these bridges' settings, all in one process. Requests aren't limited by default."""
    settings = (json.dumps({"request_rate": 0, **bridge}) for bridge in bridges)
    command = (*wrapper, sys.executable, "-m", "tests.support.apps.plain", *settings)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=PIPE, stderr=DEVNULL, cwd=PROJECT, env=os.environ | APP_ENVIRONMENT
    )
    app = AppProcess(process, [])
    try:
        app.ports = json.loads(await app.line())
        yield app
    finally:
        await ended(process)


@contextlib.asynccontextmanager
async def managed_process(
    configuration: Mapping[str, str], *options: str, log: IO[bytes] | int = DEVNULL
) -> AsyncIterator[int]:
    """Serve ``tests.support.apps.managed`` by the ``sanic`` command, with these options of it; its port."""
    port = free_port()
    command = (
        sys.executable,
        "-m",
        "sanic",
        "tests.support.apps.managed:app",
        "--port",
        str(port),
        "--workers",
        "1",
        *options,
    )
    environment = {f"SANIC_{name}": value for name, value in configuration.items()}
    async with process_of_workers(port, command, environment, log, managed="--single-process" not in options):
        yield port


@contextlib.asynccontextmanager
async def process_of_workers(
    port: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    log: IO[bytes] | int = DEVNULL,
    *,
    managed: bool = True,
) -> AsyncIterator[None]:
    """Run a manager of Sanic's with its workers until the end of the block; none of them outlives it."""
    with ManagerReady() as ready:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=log,
            stderr=log,
            cwd=PROJECT,
            env=os.environ | environment | ready.environment,
            start_new_session=True,
        )
        try:
            await listening(port)
            if managed:
                await until(ready)
            yield
        finally:
            await ended(process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def asgi_process(*command: str, **configuration: str) -> AsyncIterator[tuple[Process, int]]:
    """Serve ``tests.support.apps.managed`` with the command of an ASGI server; ``PORT`` is replaced by its port."""
    port = free_port()
    arguments = [argument.replace("PORT", str(port)) for argument in command]
    settings = {f"SANIC_NATS_BRIDGE_{name.upper()}": value for name, value in configuration.items()}
    environment = os.environ | APP_ENVIRONMENT | settings
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=DEVNULL, stderr=DEVNULL, cwd=PROJECT, env=environment
    )
    try:
        await listening(port)
        yield process, port
    finally:
        await ended(process)


async def listening(port: int) -> None:
    """Wait until the port takes connections."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return await writer.wait_closed()
            await asyncio.sleep(0.01)


async def ended(process: Process) -> None:
    """End the process, and let asyncio see that it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
