import asyncio
import inspect
from typing import Any

import pytest
from nats.aio.client import Client

from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_nats_supervisor import supervising
from tests.support.bridge import WAIT_SECONDS

# Assumptions of nats_connection about nats-py: these tests fail when an upgrade breaks one.


async def test_private_attributes_of_nats_py_behave_as_assumed(nats_server: NatsServer) -> None:
    client: Any = Client()
    assert (client._sid, client._pongs, client._pongs_received, client._pings_outstanding) == (0, [], 0, 0)
    assert client._transport is client._reading_task is None
    await client.connect(nats_server.url)
    try:
        assert isinstance(client._reading_task, asyncio.Task)
        assert callable(client._transport.write)
        ping: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        client._pongs.append(ping)
        client._transport.write(b"PING\r\n")
        assert await asyncio.wait_for(ping, WAIT_SECONDS)
        assert client._pongs == []
        assert client._pongs_received >= 1
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("_close", ["status", "do_cbs"]),
        ("_process_msg", ["sid", "subject", "reply", "data", "headers"]),
        ("_process_err", ["err_msg"]),
        ("_process_ping", []),
        ("_process_info", ["info", "initial_connection"]),
    ],
)
def test_private_methods_of_nats_py_have_expected_parameters(name: str, parameters: list[str]) -> None:
    method = getattr(Client, name)
    assert inspect.iscoroutinefunction(method)
    assert list(inspect.signature(method).parameters)[1:] == parameters


@pytest.mark.parametrize(("name", "parameters"), [("parse", ["data"]), ("reset", [])])
def test_nats_py_uses_only_parse_and_reset_of_its_parser(name: str, parameters: list[str]) -> None:
    client: Any = Client()
    assert list(inspect.signature(getattr(client._ps, name)).parameters) == parameters
    used = {line.split("_ps.")[1].partition("(")[0] for line in inspect.getsource(Client).split("\n") if "_ps." in line}
    assert used == {"parse", "reset"}


async def test_subscribe_and_unsubscribe_ignore_closing_transport(nats_server: NatsServer) -> None:
    class Closing:
        def write(self, _: bytes) -> None:
            raise RuntimeError("unable to perform operation; the handler is closed")

    async with supervising(nats_server) as linked_up:
        client: Any = linked_up.client
        transport, client._transport = client._transport, Closing()
        sid = linked_up.supervisor.subscribe("a", "a")
        assert sid is not None
        linked_up.supervisor.unsubscribe(sid)
        client._transport = transport
