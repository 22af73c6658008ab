"""Start proxies that are programs of their own, install what they need, and read their versions."""

import asyncio
import contextlib
import functools
import json
import os
import pwd
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from ..harness.certificates import Certificate
from ..harness.processes import PROJECT, find_command, listens, stop
from ..harness.remote import end_with_parent
from .setup import Program, Setup

__all__ = ["StartError", "install", "running_program", "version"]

_FOLDER = Path(__file__).parent
_CONFIGURATIONS = _FOLDER / "configurations"
_NODE = _FOLDER / "node"
_START_SECONDS = 60.0
_POLL_SECONDS = 0.02
_LOG_TAIL = 2000
_EVERYONE = 0o777


class StartError(RuntimeError):
    """An error of a proxy that isn't installed or didn't start. The message has the end of its log."""


def install(programs: Iterable[Program]) -> None:
    """Install the packages that are missing, by apt-get and npm.

    Raises:
        CalledProcessError: A package can't be installed. The output of the command has the reason.
    """
    programs = tuple(programs)
    packages = {f"{each.command}:{each.package}" for each in programs if each.source == "debian"}
    if any(each.source == "node" for each in programs):
        packages |= {"node:nodejs", "npm:npm"}
    if packages:
        subprocess.run([PROJECT / ".ci" / "packages", *sorted(packages)], check=True)  # noqa: S603 - our own arguments
    if any(each.source == "node" for each in programs) and not (_NODE / "node_modules").exists():
        npm = ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent")
        subprocess.run(npm, cwd=_NODE, check=True)  # noqa: S603 - our own arguments


def version(program: Program) -> str:
    """Return the version of the package of a program."""
    if program.source == "node":
        described = json.loads((_NODE / "node_modules" / program.package / "package.json").read_text())
        return str(described["version"])
    query = ("dpkg-query", "--show", "--showformat=${Version}", program.package)
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout or "unknown"  # noqa: S603


@contextlib.asynccontextmanager
async def running_program(
    setup: Setup, target: int, port: int, certificate: Certificate, folder: Path
) -> AsyncIterator[None]:
    """Run the program of a set-up before the app until the end of the context. It listens when the context begins.

    Args:
        setup: A set-up with a program.
        target: The port of the app.
        port: The port of the proxy.
        certificate: The certificate of the proxy.
        folder: A new folder for the files of the proxy.

    Raises:
        StartError: The program isn't installed, has ended, or doesn't listen in time.
    """
    process = _started(setup, target, port, certificate, folder)
    try:
        await _wait_until_it_listens(setup.name, process, port, folder)
        yield
    finally:
        stop(process)


def _started(setup: Setup, target: int, port: int, certificate: Certificate, folder: Path) -> subprocess.Popen[bytes]:
    assert isinstance(setup.proxy, Program)
    folder.chmod(_EVERYONE)  # some change their user
    values = {
        "PORT": str(port),
        "TARGET": str(target),
        "FOLDER": str(folder),
        "CONFIGURATION": str(folder / setup.configuration),
        "CERTIFICATE": str(certificate.chain),
        "KEY": str(certificate.key),
        "BOTH": str(certificate.both),
        "NODE": str(_NODE),
        "USER": _user(),
    }
    if setup.configuration:
        text = (_CONFIGURATIONS / setup.configuration).read_text()
        (folder / setup.configuration).write_text(_filled(text, values))
    command = find_command(setup.proxy.command)
    if command is None:
        raise StartError(f"{setup.proxy.command} is not installed")
    arguments = [_filled(each, values) for each in (*setup.proxy.arguments, *setup.arguments)]
    with (folder / "log").open("w+b") as log:
        return subprocess.Popen(  # noqa: S603 - our own arguments
            [command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},
            start_new_session=True,
            preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
        )


async def _wait_until_it_listens(name: str, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if listens(port):
            return
        await asyncio.sleep(_POLL_SECONDS)
    logs = (folder / "log", folder / "cache.log")
    text = "".join(log.read_text(errors="replace")[-_LOG_TAIL:] for log in logs if log.exists())
    raise StartError(f"{name} does not listen: {text.strip() or process.returncode}")


def _user() -> str:
    """Return the name of an unprivileged user for root, or else that of the current user."""
    return "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name


def _filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
