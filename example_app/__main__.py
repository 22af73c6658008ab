"""Serve the example page (``python -m example_app``). Without ``--nats`` it starts a nats-server with streams."""

import argparse
import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sanic import Sanic
from sanic.worker.loader import AppLoader

from sanic_nats_bridge.testing import NatsServer

from .app import create_app
from .streams import create_streams

# With Sanic's default of 100, browsers wait for seconds if many connect at once, such as after a restart.
BACKLOG = 4096


def main() -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    options = _options()
    with _nats(options.nats) as url:
        # Workers are separate processes, which inherit the environment.
        os.environ["NATS_URL"] = url
        os.environ["EXAMPLE_APP_HOSTS"] = " ".join(options.allow_host)
        os.environ["EXAMPLE_APP_STREAMS"] = "" if options.nats else "1"
        loader = AppLoader(factory=create_app)
        app = loader.load()
        single = options.workers == 1
        app.prepare(
            host=options.host, port=options.port, workers=options.workers, single_process=single, backlog=BACKLOG
        )
        if single:
            Sanic.serve_single(app)
        else:
            Sanic.serve(primary=app, app_loader=loader)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5001)
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=os.environ.get("EXAMPLE_APP_HOSTS", "").split(),
        help="a host name, other than localhost, under which the app is reached; may be repeated",
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--nats",
        metavar="URL",
        default=os.environ.get("NATS_URL"),
        help="URL of a running nats-server (default: $NATS_URL; without it, one is started with the app)",
    )
    return parser.parse_args()


@contextmanager
def _nats(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    with NatsServer(jetstream=True) as server:
        asyncio.run(create_streams(server.url))
        yield server.url


if __name__ == "__main__":
    main()
