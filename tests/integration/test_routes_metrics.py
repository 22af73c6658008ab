import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from sanic_nats_bridge import settings
from sanic_nats_bridge.errors import SettingsError
from sanic_nats_bridge.metrics.aggregator import MetricsAggregator
from sanic_nats_bridge.metrics.definitions import METRICS, Readings
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import (
    SERVERS,
    WAIT_SECONDS,
    Bridge,
    Publisher,
    ServerName,
    alive,
    free_port,
    running,
    until,
)
from tests.support.clock import held
from tests.support.process import managed_process, process_of_workers

OPENMETRICS = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, ...], float]
"""Numbers by the name of the metric, the worker, and any other label's value."""


def samples(text: str, parser: Any = parse) -> Samples:
    """Return the samples of a scrape; a duplicate series is an error."""
    found: Samples = {}
    for family in parser(text):
        assert family.type in ("counter", "gauge")
        for sample in family.samples:
            labels = dict(sample.labels)
            key = (sample.name, labels.pop("worker"), *labels.values())
            assert key not in found
            assert family.type == ("counter" if sample.name.endswith("_total") else "gauge")
            found[key] = sample.value
    return found


async def scrape(http: aiohttp.ClientSession, prefix: str = "/nats") -> Samples:
    async with http.get(f"{prefix}/metrics", headers={"Connection": "close"}) as response:
        assert response.status == 200
        return samples(await response.text())


def folders(temporary: Path) -> list[Path]:
    """Return the folders in which workers share their metrics."""
    return list(temporary.glob("sanic-nats-bridge-*"))


def files(folder: Path) -> list[Path]:
    return list(folder.glob("managed.*"))


def total(scraped: Samples, name: str) -> float:
    return sum(value for key, value in scraped.items() if key[0] == name)


@pytest.fixture(params=SERVERS)
async def measured(request: pytest.FixtureRequest, shared_nats: NatsServer) -> AsyncIterator[Bridge]:
    server: ServerName = request.param
    async with running(servers=shared_nats.url, subscribe=[">"], metrics=True, server=server) as bridge:
        yield bridge


async def read(bridge: Bridge, **headers: str) -> tuple[str, str]:
    async with bridge.http.get(f"{bridge.url}/metrics", headers=headers) as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        return response.headers["Content-Type"], await response.text()


# One process


async def test_scrape_reports_counts_without_subjects_or_session_ids(measured: Bridge, publisher: Publisher) -> None:
    subject = publisher.subject("a")
    async with measured.websocket() as client:
        await client.follow(subject)
        await publisher.send(subject, b"1", b"2")
        await client.data(2)
        await client.ask({"action": "subscribe", "subjects": ["a..b"]})
        content_type, text = await read(measured)
    assert content_type.startswith("text/plain; version=")
    scraped = samples(text)
    worker = "single"
    assert scraped["natsbridge_sessions", worker, "websocket"] == 1
    assert scraped["natsbridge_sessions", worker, "sse"] == 0
    assert scraped["natsbridge_patterns", worker] == 1
    assert scraped["natsbridge_messages_total", worker] == scraped["natsbridge_deliveries_total", worker] == 2
    assert scraped["natsbridge_refused_commands_total", worker, "subject.invalid"] == 1
    assert scraped["natsbridge_nats_connected", worker] == 1
    assert subject not in text
    assert client.session not in text
    assert client.key not in text


async def test_every_metric_has_help_and_type(measured: Bridge) -> None:
    _, text = await read(measured)
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}\n" in text
        assert f"# TYPE {metric.name} {'counter' if metric.grows else 'gauge'}\n" in text


async def test_openmetrics_format_is_sent_if_requested(measured: Bridge) -> None:
    content_type, text = await read(measured, Accept=f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")
    plain = samples((await read(measured, Accept="text/plain"))[1])
    assert samples(text, parse_openmetrics).keys() == plain.keys()


@pytest.mark.parametrize(
    "accept", ["", "nonsense;;=,", "text/plain;version=1.0.0;escaping=x", "*/*", "\xff", "," * 3000]
)
async def test_unusual_accept_header_gets_text_format(measured: Bridge, accept: str) -> None:
    content_type, text = await read(measured, Accept=accept)
    assert content_type.startswith("text/plain")
    assert samples(text)


async def test_metrics_are_answered_from_copy_for_a_second(measured: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered = 0
    gather = MetricsAggregator.gather

    async def count(aggregator: MetricsAggregator) -> dict[str, Readings]:
        nonlocal gathered
        gathered += 1
        return await gather(aggregator)

    async with held() as clock:
        await read(measured)
        await clock.forward(1)
        monkeypatch.setattr(MetricsAggregator, "gather", count)
        before = samples((await read(measured))[1])
        async with measured.websocket():
            for accept in ("text/plain", OPENMETRICS):
                answers = await asyncio.gather(*(read(measured, Accept=accept) for _ in range(20)))
                assert len({text for _, text in answers}) == 1
            assert samples((await read(measured))[1]) == before
            assert gathered == 1
            await clock.forward(1)
            after = samples((await read(measured))[1])
            assert gathered == 2
    websocket = ("natsbridge_sessions", "single", "websocket")
    assert after[websocket] == before[websocket] + 1


async def test_metrics_are_encoded_for_few_versions_of_openmetrics(measured: Bridge) -> None:
    async with held() as clock:
        await read(measured)
        await clock.forward(1)
        versions = [f"application/openmetrics-text; version={number}.0.0" for number in range(1, 30)]
        types = {(await read(measured, Accept=version))[0] for version in versions}
        assert len(types) == 5
        content_type, text = await read(measured, Accept=versions[-1])
        assert content_type.startswith("text/plain")
        assert samples(text)


async def test_head_response_has_no_body(measured: Bridge) -> None:
    for _ in range(2):
        async with measured.http.head(f"{measured.url}/metrics") as response:
            assert (response.status, await response.read()) == (200, b"")


async def test_metrics_are_served_while_nats_is_disconnected(nats_server: NatsServer) -> None:
    nats_server.stop()
    async with running(servers=nats_server.url, connected=False, metrics=True, prefix="") as bridge:
        assert samples((await read(bridge))[1])["natsbridge_nats_connected", "single"] == 0


async def test_metrics_route_returns_404_by_default(bridge: Bridge) -> None:
    async with bridge.http.get(f"{bridge.url}/metrics") as response:
        assert response.status == 404


async def test_app_and_bridge_metrics_use_separate_registries(measured: Bridge) -> None:
    own = prometheus_client.Counter(f"own_{uuid4().hex}", "Of the app")
    own.inc()
    _, text = await read(measured)
    assert "own_" not in text
    assert "natsbridge" not in prometheus_client.generate_latest().decode()


def test_metrics_setting_without_library_is_rejected_with_install_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    Settings.resolve({}, {})
    with pytest.raises(SettingsError, match=r"requires a package: pip install 'sanic-nats-bridge\[metrics\]'$"):
        Settings.resolve({"metrics": True}, {})


def test_prometheus_client_is_not_imported_by_default() -> None:
    code = (
        "import sys; from sanic import Sanic; from sanic_nats_bridge import NatsBridge;"
        "Sanic('a').extend(extensions=[NatsBridge(subscribe=['a'])]); assert 'prometheus_client' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


WITHOUT_SHARING = """
import sys
sys.modules.update(dict.fromkeys(("fcntl", "termios", "resource", "pwd", "grp")) if sys.argv[1] == "Windows" else {})
import asyncio, os, tempfile
if sys.argv[1] != "Windows":
    def gettempdir():
        raise FileNotFoundError(2, "No usable temporary directory found")
    tempfile.gettempdir = gettempdir
import sanic_nats_bridge.testing
from sanic import Sanic
from sanic_nats_bridge import NatsBridge
app = Sanic("alone")
NatsBridge(app, subscribe=["a"], metrics=True)
(route,) = [each for each in app.router.routes if each.path == "nats/metrics"]
print("served", route.path)
"""


@pytest.mark.parametrize("system", ["Windows", "read-only"])
def test_single_process_serves_metrics_without_shared_files(system: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_SHARING, system], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "served nats/metrics"
    assert "Traceback" not in done.stderr
    assert (done.stdout + done.stderr).count("The workers cannot share their metrics") == 1


# Several workers


class Server:
    """Several workers under Sanic's manager."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.workers: dict[str, int] = {}

    async def find(self, count: int) -> None:
        """Learn the process ids of the workers."""
        async with asyncio.timeout(3 * WAIT_SECONDS):
            while len(self.workers) < count:
                self.workers |= await self.worker()

    async def worker(self) -> dict[str, int]:
        """Return the name and process id of the worker that happens to serve the request."""
        async with self.http.get("/worker", headers={"Connection": "close"}) as response:
            found = await response.json()
        return {found["name"]: found["pid"]}

    async def refuse(self, times: int) -> None:
        """Cause so many refusals, each by a worker as chance will have it."""
        for _ in range(times):
            headers = {"Connection": "close", "Content-Type": "application/json"}
            async with self.http.post("/nats/subscribe", data=b"{", headers=headers) as response:
                assert response.status == 400

    async def restart(self, name: str, query: str = "") -> None:
        """Have Sanic restart the worker, and wait until another process serves in its place."""
        before = self.workers[name]
        async with self.http.post(f"/restart/{name}{query}", headers={"Connection": "close"}) as response:
            assert response.status == 204
        async with asyncio.timeout(3 * WAIT_SECONDS):
            while self.workers[name] == before:
                self.workers |= await self.worker()
        await until(lambda: not alive(before), 3 * WAIT_SECONDS)


async def test_any_worker_reports_all_workers_and_counters_survive_restarts(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    configuration = {"NATS_BRIDGE_SERVERS": nats_server.url, "NATS_BRIDGE_METRICS": "true"}
    async with (
        managed_process(configuration, "--workers", "3") as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
    ):
        server = Server(http)
        await server.find(3)
        names = sorted(server.workers)
        assert names == [f"Sanic-Server-{number}-0" for number in range(3)]
        (folder,) = folders(tmp_path)

        counted = 0.0

        async def all_show(expected: float, gauges: list[str]) -> None:
            """Scrape until what was counted is shown; none may show less than was shown a second before."""
            nonlocal counted
            async with asyncio.timeout(WAIT_SECONDS):
                for _ in range(6):
                    while True:
                        # A worker answers from a copy that is a second old at most.
                        await asyncio.sleep(1)
                        scraped = await scrape(http)
                        refused = total(scraped, "natsbridge_refused_commands_total")
                        assert counted <= refused <= expected
                        counted = refused
                        shown = [name for name in names if ("natsbridge_nats_connected", name) in scraped]
                        if refused == expected and shown == gauges:
                            break

        await server.refuse(30)
        await all_show(30, names)

        os.kill(server.workers[names[2]], signal.SIGKILL)
        await until(lambda: not alive(server.workers[names[2]]))
        await all_show(30, names[:2])
        await server.restart(names[2])
        await all_show(30, names)
        assert len(files(folder)) == 3

        await server.refuse(10)
        await all_show(40, names)
        await server.restart(names[1])
        await server.restart(names[0], "?overlap=1")
        await all_show(40, names)

        nats_server.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            while total(await scrape(http), "natsbridge_nats_connected"):
                pass
        await all_show(40, names)
    await until(lambda: not folders(tmp_path))


async def test_workers_share_metrics_if_app_is_in_main_module(shared_nats: NatsServer) -> None:
    port = free_port()
    settings = {"SANIC_NATS_BRIDGE_SERVERS": shared_nats.url, "SANIC_NATS_BRIDGE_METRICS": "true", "PORT": str(port)}
    command = (sys.executable, "-m", "tests.support.apps.managed")
    async with (
        process_of_workers(port, command, settings),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http,
        asyncio.timeout(3 * WAIT_SECONDS),
    ):
        while {worker for _, worker, *_ in await scrape(http)} != {"Sanic-Server-0-0", "Sanic-Server-1-0"}:
            pass


async def test_two_apps_in_one_process_report_separate_metrics(shared_nats: NatsServer) -> None:
    options: dict[str, Any] = {"servers": shared_nats.url, "subscribe": [">"], "metrics": True}
    async with running(**options) as first, running(**options) as second, first.websocket():
        of_first, of_second = [samples((await read(bridge))[1]) for bridge in (first, second)]
        assert of_first["natsbridge_sessions", "single", "websocket"] == 1
        assert of_second["natsbridge_sessions", "single", "websocket"] == 0
