"""The bridge in a Sanic app: ``python -m benchmarks.servers.bridge '{"servers": "nats://…"}' [asyncio]``."""

import json
import sys
from typing import Any

from sanic import Sanic

from sanic_nats_bridge import NatsBridge

from .serving import serve


def main() -> None:
    """Serve until the process is ended."""
    app: Sanic[Any, Any] = Sanic("bench_bridge", configure_logging=False)
    extensions: list[Any] = [NatsBridge(**json.loads(sys.argv[1]))]
    app.extend(extensions=extensions)
    serve(app, sys.argv[2])


if __name__ == "__main__":
    main()
