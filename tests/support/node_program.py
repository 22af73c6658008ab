"""Programs for Node in processes of their own."""

import asyncio
import contextlib
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.support.bridge import WAIT_SECONDS
from tests.support.process import ended

NODE = Path(__file__).parent / "node"
"""The folder of the programs and of the npm packages."""


class NodeProgram:
    def __init__(self, process: Process) -> None:
        self.process = process

    async def line(self) -> Any:
        """Return the next line of the output, which must be JSON."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            return json.loads(await self.process.stdout.readline())

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@contextlib.asynccontextmanager
async def running_node(*arguments: str | Path) -> AsyncIterator[NodeProgram]:
    """Run Node with these arguments until the end of the block."""
    node = shutil.which("node")
    assert node is not None, "make test installs node"
    assert (NODE / "node_modules").is_dir(), "make test installs the npm packages"
    process = await asyncio.create_subprocess_exec(node, *arguments, stdin=PIPE, stdout=PIPE)
    try:
        yield NodeProgram(process)
    finally:
        await ended(process)
