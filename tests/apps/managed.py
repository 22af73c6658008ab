"""An app for the ``sanic`` command, with its process manager; its settings come from the environment."""

import os
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.response import empty, json

from sanic_nats_bridge import NatsBridge

app: Sanic[Any, Any] = Sanic("managed")
extensions: list[Any] = [NatsBridge()]
app.extend(extensions=extensions)


@app.get("/worker")
async def worker(request: Request) -> HTTPResponse:
    return json({"name": os.environ.get("SANIC_WORKER_NAME"), "pid": os.getpid()})


@app.post("/restart/<name:str>")
async def restart(request: Request, name: str) -> HTTPResponse:
    request.app.m.restart(name, zero_downtime="overlap" in request.args)
    return empty()
