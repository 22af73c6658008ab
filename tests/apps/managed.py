"""An app for the ``sanic`` command, with its process manager; its settings come from the environment."""

from typing import Any

from sanic import Sanic

from sanic_nats_bridge import NatsBridge

app: Sanic[Any, Any] = Sanic("managed")
extensions: list[Any] = [NatsBridge()]
app.extend(extensions=extensions)
