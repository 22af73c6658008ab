"""The attacked app, in a process of its own: ``python -m tools.abuse.app '{"servers": "nats://…"}' LIMIT …``.

The limits that are named are removed, as `limits_off` does it.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from sanic import Request, Sanic
from sanic import json as json_response
from sanic.response import HTTPResponse

from sanic_nats_bridge import NatsBridge, Permissions, Publication

from ..harness.processes import prefer
from ..harness.serving import serve_app
from .limits_off import remove_limits
from .names import APP_NAME, LISTED

__all__ = ["main", "permissions"]

_LISTS = Permissions(
    subscribe=[f"rooms.{number}.>" for number in range(LISTED)],
    deny=[f"rooms.{number}.private.>" for number in range(LISTED)],
)
_ALL: Mapping[str, Any] = {"subscribe": [">"], "publish": [">"], "request": [">"]}
_PROFILES: Mapping[str, Permissions] = {
    "all": Permissions(**_ALL),
    "honest": Permissions(**_ALL, identity="honest"),
    "user": Permissions(**_ALL, identity="mallory"),
    "lists": _LISTS,
}
_SLOW_SECONDS = 60.0
_LONG_TURN_SECONDS = 0.06
_LOOK_SECONDS = 0.002

_counts = {"calls": 0, "most calls": 0, "log lines": 0, "long turns": 0}


class _Counting(logging.Handler):
    """A handler that counts the bridge's log lines, and writes none."""

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line."""
        _counts["log lines"] += 1


def main() -> None:
    """Serve with the settings of the command line until the process ends."""
    settings, limits = json.loads(sys.argv[1]), sys.argv[2:]
    prefer(os.getpid())
    remove_limits(limits)
    logger = logging.getLogger("sanic.root.nats_bridge")
    logger.addHandler(_Counting())
    logger.propagate = False
    app: Sanic[Any, Any] = Sanic(APP_NAME, configure_logging=False)
    bridge = NatsBridge(app, **{"permissions": permissions, **settings})
    bridge.on_publish("slow.>")(slow_check)
    app.add_task(_count_long_turns())
    app.add_route(facts, "/facts")
    app.add_route(trim, "/trim")
    app.add_route(revoke, "/revoke/<identity>", methods=["POST"])
    serve_app(app)


async def permissions(request: Request) -> Permissions | None:
    """Return the permissions of the profile that the client names, at once or slowly."""
    profile = request.args.get("profile")
    if profile != "slow":
        return _PROFILES.get(profile)
    _counts["calls"] += 1
    _counts["most calls"] = max(_counts["most calls"], _counts["calls"])
    try:
        await asyncio.sleep(_SLOW_SECONDS)
    finally:
        _counts["calls"] -= 1
    return None


async def slow_check(_: Publication[Any]) -> None:
    """Take a minute to allow a publish."""
    await asyncio.sleep(_SLOW_SECONDS)


async def _count_long_turns() -> None:
    """Count the turns of the event loop that take longer than 60 ms."""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await asyncio.sleep(_LOOK_SECONDS)
        _counts["long turns"] += loop.time() - began > _LONG_TURN_SECONDS


async def facts(_: Request) -> HTTPResponse:
    """Respond with the numbers of log lines, of calls of the permissions function, and of long turns of the loop."""
    return json_response(_counts)


async def trim(_: Request) -> HTTPResponse:
    """Return to the system what is free of the heap. Otherwise it depends on the order of allocations how much stays.

    Only the C library of GNU has a function for that. Others keep less.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return json_response({})


async def revoke(request: Request, identity: str) -> HTTPResponse:
    """Revoke all sessions of a user, and respond with their number on this worker."""
    result = await request.app.ctx.nats_bridge.revoke(identity=identity)
    return json_response(result.sessions)


if __name__ == "__main__":
    main()
