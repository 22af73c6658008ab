"""The bridge in several workers, under Sanic's manager.

``python -m tools.faults.workers SETTINGS HOST PORT WORKERS``
"""

import asyncio
import json
import os
import sys
import time
from typing import Any, Final

from sanic import Request, Sanic, empty
from sanic import json as json_response
from sanic.response import BaseHTTPResponse, HTTPResponse
from sanic.worker.loader import AppLoader

from sanic_nats_bridge import Permissions

from ..harness.remote import end_with_parent
from .bridge import make_app, permissions

__all__ = ["create_app"]

_SETTINGS: Final = "FAULTS_SETTINGS"
_CONFIG: Final = "config"
_BACKLOG: Final = 4096
_FOREVER_SECONDS: Final = 3600.0


def main() -> None:
    """Serve until the process is ended; each worker says on standard output when it is ready, and when it stops."""
    settings, host, port, workers = sys.argv[1:]
    # The workers find it in their environment.
    os.environ[_SETTINGS] = settings
    loader = AppLoader(factory=create_app)
    app = loader.load()
    app.prepare(host=host, port=int(port), workers=int(workers), access_log=False, motd=False, backlog=_BACKLOG)
    Sanic.serve(primary=app, app_loader=loader)


def create_app() -> Sanic[Any, Any]:
    """Make the app; called once in each process."""
    settings = json.loads(os.environ[_SETTINGS])
    config = settings.pop(_CONFIG, {})
    app = make_app({"permissions": hanging_permissions, **settings})
    app.update_config(config)
    app.add_route(facts, "/facts")
    app.add_route(restart, "/restart/<name>", methods=["POST"])
    app.register_middleware(say_who_answers, "response")
    app.register_listener(begin, "before_server_start")
    app.register_listener(say_ready, "after_server_start")
    app.register_listener(say_stopping, "before_server_stop")
    return app


async def hanging_permissions(request: Request) -> Permissions | None:
    """What the client may follow; for the view ``hanging`` the answer does not come."""
    if request.args.get("view") == "hanging":
        await asyncio.sleep(_FOREVER_SECONDS)
    return await permissions(request)


async def facts(request: Request) -> HTTPResponse:
    """What all workers are, and what this one holds."""
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
    """Have Sanic's manager restart that worker: with ``overlap`` the old one ends when the new one serves."""
    request.app.m.restart(name, zero_downtime="overlap" in request.args)
    return empty()


async def say_who_answers(_: Request, response: BaseHTTPResponse) -> None:
    """Tell the clients which process they have met."""
    response.headers["x-worker"] = str(os.getpid())


async def begin(_: Sanic[Any, Any]) -> None:
    """Do not outlive a manager that was killed."""
    end_with_parent()


async def say_ready(_: Sanic[Any, Any]) -> None:
    """Tell who measures."""
    _say("ready")


async def say_stopping(_: Sanic[Any, Any]) -> None:
    """Tell who measures; of the listeners of an app, the last comes first."""
    _say("stopping")


def _say(what: str) -> None:
    # One write, so that the lines of two workers do not mix. The clock is that of all processes.
    os.write(sys.stdout.fileno(), f"{what} {os.getpid()} {time.monotonic()}\n".encode())


if __name__ == "__main__":
    main()
