"""One app and its bridge for each argument, in one process.

``python -m tests.support.apps.plain '{"prefix": "/a"}' …``.

An argument holds the bridge's settings as JSON. With `send_buffer`, the kernel holds at most that many bytes for a
client. The first line of the output lists the ports. The following lines are the sessions that end, with their close
codes.
"""

import asyncio
import gc
import json
import socket
import sys
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import json as as_json

from sanic_nats_bridge import NatsBridge, Session

BACKLOG = 4096


def prepared(number: int, settings: Any) -> int:
    app: Sanic[Any, Any] = Sanic(f"plain_{number}", configure_logging=False)
    send_buffer = settings.pop("send_buffer", None)
    bridge = NatsBridge(**settings)
    bridge.init_app(app)

    @app.get("/facts")
    async def facts(request: Request) -> HTTPResponse:
        gc.collect()  # how much garbage waits depends on the version of Python
        runtime = bridge._on_app
        return as_json(
            {
                "connected": int(runtime.sessions.hub.connected and runtime.control.ready),
                "sessions": len(runtime.sessions),
                "tasks": len(asyncio.all_tasks()),
            }
        )

    @app.signal("natsbridge.session.closed")
    async def closed(session: Session, code: int) -> None:
        sys.stdout.write(f"closed {code}\n")
        sys.stdout.flush()

    listener = socket.socket()
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("0.0.0.0", 0))
    listener.listen(BACKLOG)
    port: int = listener.getsockname()[1]
    app.prepare(sock=listener, backlog=BACKLOG, single_process=True, access_log=False, motd=False)
    return port


def main() -> None:
    ports = [prepared(number, json.loads(settings)) for number, settings in enumerate(sys.argv[1:])]
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    Sanic.serve_single()


if __name__ == "__main__":
    main()
