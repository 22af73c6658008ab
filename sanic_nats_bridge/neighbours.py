"""Other apps of the same process, which Sanic's own server runs as tasks of the first one."""

import asyncio
from typing import Any, Final

from sanic import Sanic

__all__ = ["neighbours_ended"]

_TASK_NAME: Final = "RunServer"


async def neighbours_ended(app: Sanic[Any, Any]) -> None:
    """Wait until the other apps have ended, for as long as Sanic's `GRACEFUL_SHUTDOWN_TIMEOUT` at most.

    Sanic 25.12 ends the first app while they end, and counts down from that time by tenths until they have, or
    nothing is left of it: without running the event loop, and past a zero that floats do not hit.
    """
    others = [task for task in app.tasks if task.get_name() == _TASK_NAME]
    if others:
        await asyncio.wait(others, timeout=app.config.GRACEFUL_SHUTDOWN_TIMEOUT)
