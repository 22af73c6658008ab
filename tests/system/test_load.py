import asyncio
import re
from functools import partial
from typing import Any, Final

import aiohttp

from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS, Publisher, until
from tests.support.process import AppProcess, app_process
from tests.support.raw import UPGRADE, client_frame

CLIENTS: Final = 200
MESSAGES: Final = 1_000
BURST: Final = 100
REPETITIONS: Final = 5
LINGER: Final = 0.5


class Client(asyncio.Protocol):
    """A client that only keeps the data it receives."""

    def __init__(self, request: bytes) -> None:
        self.received = bytearray()
        self._request = request

    def itself(self) -> "Client":
        return self

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += data

    @property
    def welcomed(self) -> bool:
        return b'"welcome"' in self.received

    @property
    def following(self) -> bool:
        return b'"active":true' in self.received

    def has(self, number: int) -> bool:
        return b'"data":%d}' % number in self.received[-200:]

    @property
    def numbers(self) -> list[int]:
        return [int(number) for number in re.findall(rb'"data":(\d+)}', self.received)]


async def connected(port: int, subject: str) -> list[Client]:
    """Connect clients that follow the subject, half of them on each transport."""
    command = b'{"action":"subscribe","subjects":["%b"]}' % subject.encode()
    upgrade = f"GET /nats/stream HTTP/1.1\r\n{UPGRADE}\r\n".encode()
    events = f"GET /nats/events?subjects={subject} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    requests = [upgrade, events] * (CLIENTS // 2)
    loop = asyncio.get_running_loop()
    clients = [Client(request) for request in requests]
    await asyncio.gather(
        *(loop.create_connection(partial(Client.itself, client), "127.0.0.1", port) for client in clients)
    )
    await until(lambda: all(client.welcomed for client in clients), WAIT_SECONDS)
    for client in clients[::2]:
        client.transport.write(client_frame(command))
    await until(lambda: all(client.following for client in clients), WAIT_SECONDS)
    return clients


async def facts(app: AppProcess) -> dict[str, int]:
    """Return counts of the resources that the app holds."""
    url = f"http://127.0.0.1:{app.ports[0]}/facts"
    async with aiohttp.ClientSession() as http, http.get(url, headers={"Connection": "close"}) as response:
        counted: dict[str, int] = await response.json()
        return counted | {"files": app.open_files}


async def connected_facts(app: AppProcess) -> dict[str, int]:
    """Return counts of the resources that the app holds after it has connected to NATS."""
    async with asyncio.timeout(WAIT_SECONDS):
        found = await facts(app)
        while not found["connected"]:
            await asyncio.sleep(0.05)
            found = await facts(app)
    return found


async def settled(app: AppProcess, expected: dict[str, int]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while (found := await facts(app)) != expected:
            await asyncio.sleep(0.05)
            assert found["sessions"] >= expected["sessions"]


async def one_round(app: AppProcess, server: NatsServer, publisher: Publisher) -> None:
    """Connect clients, check that each gets every message once and in order, and disconnect them."""
    subject = publisher.subject("load")
    clients = await connected(app.ports[0], subject)
    assert server.subscriptions() == [subject]
    for first in range(0, MESSAGES, BURST):
        await publisher.send(subject, *(b"%d" % number for number in range(first, first + BURST)))
        last = first + BURST - 1
        await until(lambda last=last: all(client.has(last) for client in clients), WAIT_SECONDS)  # type: ignore[misc]
    for client in clients:
        assert client.numbers == list(range(MESSAGES))
        client.transport.close()
    await until(lambda: not server.subscriptions(), LINGER + WAIT_SECONDS)


async def test_200_clients_share_one_subscription_and_leak_nothing(nats_server: NatsServer) -> None:
    async with (
        app_process({"servers": nats_server.url, "subscribe": [">"], "unsubscribe_delay": LINGER}) as app,
        Publisher.connected(nats_server) as publisher,
    ):
        before = await connected_facts(app)
        resident = []
        for _ in range(REPETITIONS):
            await one_round(app, nats_server, publisher)
            await settled(app, before)
            resident.append(app.resident_bytes)
        assert resident[4] <= resident[1] * 1.1, resident
