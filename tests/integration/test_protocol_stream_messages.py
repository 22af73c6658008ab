"""The operations of a key-value bucket, as nats-server and nats-py write them into headers."""

import base64
import json

import nats
from nats.aio.client import Client

from sanic_nats_bridge.protocol.stream_messages import Operation, operation_of
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import WAIT_SECONDS
from tests.support.streams import jetstream_fixture

jetstream = jetstream_fixture("module")


async def stored_operation(client: Client, key: str) -> Operation:
    """Return the operation of the last message of a key, by its stored headers."""
    request = json.dumps({"last_by_subj": f"$KV.prefs.{key}"}).encode()
    answer = json.loads((await client.request("$JS.API.STREAM.MSG.GET.KV_prefs", request)).data)
    return operation_of(base64.b64decode(answer["message"].get("hdrs", "")))


async def test_operation_is_that_of_nats_server_and_client(jetstream: NatsServer) -> None:
    client = await nats.connect(jetstream.url)
    context = client.jetstream()
    stream = {
        "name": "KV_prefs",
        "subjects": ["$KV.prefs.>"],
        "storage": "memory",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": 60 * 10**9,
    }
    try:
        created = await client.request("$JS.API.STREAM.CREATE.KV_prefs", json.dumps(stream).encode())
        assert "error" not in json.loads(created.data)
        bucket = await context.key_value("prefs")
        for key in ("set", "deleted", "purged"):
            await bucket.put(key, b"1")
        await bucket.delete("deleted")
        await bucket.purge("purged")
        await context.publish("$KV.prefs.expired", b"1", headers={"Nats-TTL": "1s"})
        assert await stored_operation(client, "set") == ""
        assert await stored_operation(client, "deleted") == "delete"
        assert await stored_operation(client, "purged") == "purge"
        # The server replaces the expired message by a marker.
        history = await context.subscribe("$KV.prefs.expired", ordered_consumer=True)
        while (await history.next_msg(WAIT_SECONDS)).data:
            pass
        assert await stored_operation(client, "expired") == "purge"
    finally:
        await client.close()
