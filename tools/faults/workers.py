"""The bridge in several workers, under Sanic's manager.

``python -m tools.faults.workers SETTINGS HOST PORT WORKERS``
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from sanic import Request, Sanic, empty
from sanic import json as json_response
from sanic.response import HTTPResponse
from sanic.worker.loader import AppLoader

from sanic_nats_bridge import Permissions

from ..harness.remote import end_with_parent
from .bridge import make_app, permissions

__all__ = ["create_app"]

_SETTINGS = "FAULTS_SETTINGS"
_CONFIG = "config"
_BACKLOG = 4096
_HANGING_SECONDS = 3600.0


def main() -> None:
    """Serve until the process ends. Each worker reports on standard output when it is ready, and when it stops."""
    settings, host, port, workers = sys.argv[1:]
    # The workers inherit the environment.
    os.environ[_SETTINGS] = settings
    loader = AppLoader(factory=create_app)
    app = loader.load()
    app.prepare(host=host, port=int(port), workers=int(workers), access_log=False, motd=False, backlog=_BACKLOG)
    Sanic.serve(primary=app, app_loader=loader)


def create_app() -> Sanic[Any, Any]:
    """Create the app. Each process calls this once."""
    settings = json.loads(os.environ[_SETTINGS])
    config = settings.pop(_CONFIG, {})
    app = make_app({"permissions": hanging_permissions, **settings})
    app.update_config(config)
    app.add_route(facts, "/facts")
    app.add_route(restart, "/restart/<name>", methods=["POST"])
    app.register_listener(end_with_manager, "before_server_start")
    app.register_listener(report_ready, "after_server_start")
    app.register_listener(report_stopping, "before_server_stop")
    return app


async def hanging_permissions(request: Request) -> Permissions | None:
    """Return the permissions of the client's profile. For the profile ``hanging``, wait for an hour first."""
    if request.args.get("profile") == "hanging":
        await asyncio.sleep(_HANGING_SECONDS)
    return await permissions(request)


async def facts(request: Request) -> HTTPResponse:
    """Respond with the process ids of all workers, and the numbers of tasks and sessions of this one."""
    bridge = request.app.ctx.nats_bridge
    states = request.app.m.workers.items()
    return json_response(
        {
            "workers": {name: state["pid"] for name, state in states if state.get("server")},
            "tasks": len(asyncio.all_tasks()),
            "sessions": len(bridge.sessions),
        }
    )


async def restart(request: Request, name: str) -> HTTPResponse:
    """Have Sanic's manager restart a worker. With ``overlap`` the old worker ends after the new one serves."""
    request.app.m.restart(name, zero_downtime="overlap" in request.args)
    return empty()


async def end_with_manager(_: Sanic[Any, Any]) -> None:
    """End this worker with its manager, even if that is killed."""
    end_with_parent()


async def report_ready(_: Sanic[Any, Any]) -> None:
    """Report that this worker serves."""
    _report("ready")


async def report_stopping(_: Sanic[Any, Any]) -> None:
    """Report that this worker stops. Sanic calls the listener that was registered last first."""
    _report("stopping")


def _report(event: str) -> None:
    # A single write, so that the lines of two workers don't mix. All processes share the monotonic clock.
    os.write(sys.stdout.fileno(), f"{event} {os.getpid()} {time.monotonic()}\n".encode())


if __name__ == "__main__":
    main()
