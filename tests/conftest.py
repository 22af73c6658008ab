import gc
import os
import ssl
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from sanic_nats_bridge.log_limits import limited_logger
from sanic_nats_bridge.testing import NatsServer
from tests.support import startup_caches
from tests.support.bridge import Bridge, Publisher, ServerName, running
from tools.harness.certificates import Certificate, self_signed

startup_caches.install()
os.environ.pop("NATS_URL", None)  # a developer's own server

# No property fails because an example took long. `make long` tries more examples.
settings.register_profile("usual", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("usual"), max_examples=3_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "usual"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, so that not one process alone runs them at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("system", "tools"))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting the objects of all modules and tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def unlimited_log() -> None:
    """Let each test cause as many log lines as the first one."""
    limited_logger().reset()


@pytest.fixture(scope="session")
def shared_nats() -> Iterator[NatsServer]:
    """Start a nats-server for all tests that don't harm it; each test uses subjects of its own."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return self_signed(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def server_tls(certificate: Certificate) -> ssl.SSLContext:
    """Return the TLS of a server with a certificate that no client trusts."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    return context


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """Start a nats-server for one test."""
    with NatsServer() as server:
        yield server


@pytest.fixture
def server() -> ServerName:
    """Return the name of the server that runs the ``bridge``.

    Modules with tests for several servers override this fixture.
    """
    return "sanic"


@pytest.fixture
async def bridge(shared_nats: NatsServer, server: ServerName) -> AsyncIterator[Bridge]:
    """Serve an app with a bridge that allows every subject, in this event loop, connected to NATS."""
    async with running(servers=shared_nats.url, subscribe=[">"], unsubscribe_delay=0.1, server=server) as served:
        yield served


@pytest.fixture
async def publisher(shared_nats: NatsServer) -> AsyncIterator[Publisher]:
    async with Publisher.connected(shared_nats) as publisher:
        yield publisher
