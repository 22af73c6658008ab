"""The bridge in a Sanic app: ``python -m tools.benchmarks.servers.bridge '{"servers": "nats://…"}' LOOP [WORKERS]``."""

import json
import sys

from sanic import Sanic

from sanic_nats_bridge import NatsBridge

from .serving import App, serve


def create_app() -> App:
    """Create the app, with the settings of the command line."""
    app: App = Sanic("bench_bridge", configure_logging=False)
    NatsBridge(app, **json.loads(sys.argv[1]))
    return app


if __name__ == "__main__":
    serve(create_app, sys.argv[2], *map(int, sys.argv[3:]))
