"""Host names with several addresses, of which some don't answer."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sanic_nats_bridge.nats.addresses import Addresses
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import supervising
from tests.support.bridge import WAIT_SECONDS, free_port
from tools.harness.unanswering import unanswering

NAME = "nats.example"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Replace the resolver for the names in the returned dictionary."""
    addresses: dict[str, list[str]] = {}
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        found = [resolve(address, port, *arguments, **options) for address in addresses.get(host, [host])]
        return [each for several in found for each in several]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return addresses


@contextlib.asynccontextmanager
async def silent(address: str, port: int) -> AsyncIterator[list[Any]]:
    """Accept connections and send nothing."""
    accepted: list[Any] = []
    async with await asyncio.start_server(lambda reader, writer: accepted.append(writer), address, port):
        yield accepted
        for writer in accepted:
            writer.close()


@pytest.mark.parametrize("dead", [["127.0.0.2"], ["127.0.0.2"] * 12], ids=["one", "more than fit into the time"])
async def test_address_that_does_not_answer_leaves_time_for_others(
    nats_server: NatsServer, names: dict[str, list[str]], dead: list[str]
) -> None:
    names[NAME] = [*dead, "127.0.0.1"]
    with unanswering("127.0.0.2", nats_server.port):
        url = f"nats://{NAME}:{nats_server.port}"
        async with supervising(servers=url, connect_timeout=WAIT_SECONDS) as bridge:
            assert await bridge.ask("a") == {"a": "confirmed"}


async def test_refusing_address_is_passed_over(nats_server: NatsServer, names: dict[str, list[str]]) -> None:
    names[NAME] = ["127.0.0.2", "127.0.0.1"]
    async with supervising(servers=f"nats://{NAME}:{nats_server.port}") as bridge:
        assert await bridge.ask("a") == {"a": "confirmed"}


async def test_address_that_accepts_but_is_silent_is_tried_last_next_time(
    nats_server: NatsServer, names: dict[str, list[str]]
) -> None:
    names[NAME] = ["127.0.0.2", "127.0.0.1"]
    async with (
        silent("127.0.0.2", nats_server.port) as accepted,
        supervising(servers=f"nats://{NAME}:{nats_server.port}", connect_timeout=0.3) as bridge,
    ):
        assert await bridge.ask("a") == {"a": "confirmed"}
        assert len(accepted) == 1


async def test_proven_address_comes_before_unproven_ones(names: dict[str, list[str]]) -> None:
    port = free_port()
    names[NAME] = ["127.0.0.2", "127.0.0.1"]
    addresses = Addresses()
    async with silent("127.0.0.1", port), silent("127.0.0.2", port):

        async def address() -> str:
            connected, (host, _) = await addresses.connect(NAME, port, WAIT_SECONDS)
            connected.close()
            return host

        assert [await address() for _ in range(4)] == ["127.0.0.2", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
        addresses.proven(("127.0.0.1", port))
        assert await address() == "127.0.0.1"


async def test_number_of_remembered_addresses_is_bounded() -> None:
    addresses = Addresses()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(1, 111):
            server = await stack.enter_async_context(
                await asyncio.start_server(lambda reader, writer: writer.close(), f"127.0.1.{number}", 0)
            )
            connected, _ = await addresses.connect(
                f"127.0.1.{number}", server.sockets[0].getsockname()[1], WAIT_SECONDS
            )
            connected.close()
        assert len(addresses._unproven) == 100


async def test_unknown_name_and_refused_connection_raise_os_error() -> None:
    with pytest.raises(socket.gaierror):
        await Addresses().connect("no-such-name.invalid", 4222, WAIT_SECONDS)
    with pytest.raises(ConnectionRefusedError):
        await Addresses().connect("127.0.0.1", free_port(), WAIT_SECONDS)
