"""An app with Sanic's process manager, by the ``sanic`` command or by itself; configured by the environment."""

import os
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import empty, json

from sanic_nats_bridge import NatsBridge

app: Sanic[Any, Any] = Sanic("managed")
NatsBridge(app)


@app.get("/worker")
async def worker(request: Request) -> HTTPResponse:
    return json({"name": os.environ.get("SANIC_WORKER_NAME"), "pid": os.getpid()})


@app.post("/restart/<name:str>")
async def restart(request: Request, name: str) -> HTTPResponse:
    request.app.m.restart(name, zero_downtime="overlap" in request.args)
    return empty()


if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]), workers=2)
