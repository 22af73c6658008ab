"""The names that the setting ``streams`` takes, against a real NATS server."""

import json

import nats
import pytest

from sanic_nats_bridge import validators
from sanic_nats_bridge.testing import NatsServer


@pytest.mark.parametrize("name", ["ORDERS", "KV_prefs", "$a", "größe", "a:b|c", "x" * 255, "ä" * 127, "{a}", "42"])
async def test_names_that_are_accepted_are_names_of_streams(name: str) -> None:
    assert list(validators.streams({name: None})) == [name]
    with NatsServer(jetstream=True) as server:
        client = await nats.connect(server.url)
        try:
            # The name is a token of the subjects of the JetStream API.
            config = json.dumps({"name": name, "subjects": ["orders.>"], "storage": "memory"}).encode()
            response = await client.request(f"$JS.API.STREAM.CREATE.{name}", config)
            assert b'"error"' not in response.data
            response = await client.request(f"$JS.API.STREAM.INFO.{name}", b"")
            assert b'"error"' not in response.data
        finally:
            await client.close()
