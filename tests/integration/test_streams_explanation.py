"""``python -m sanic_nats_bridge explain --streams``: which stream has the history of a pattern."""

import asyncio
import sys

import nats
import pytest
from nats.js.api import RetentionPolicy, StreamConfig

from sanic_nats_bridge.testing import NatsServer
from tests.support.restricted import administrator, restricted

RECENT = "history: resume_window only (default: 120 s)"
SINGLE = "it has no allow_direct, so its messages are read one by one. Set allow_direct for fast replays"
PERMISSIONS = '{"subscribe": ["orders.>", "users.7.>"], "history": ["orders.>"], "aliases": {"me.": "users.7."}}'


async def explain(*arguments: str) -> tuple[int, list[str], str]:
    """Return the status, the lines and the error of the command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sanic_nats_bridge", "explain", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode().splitlines(), error.decode()


async def test_stream_of_each_allowed_pattern_is_printed() -> None:
    with NatsServer(jetstream=True) as server:
        client = await nats.connect(server.url)
        stream = client.jetstream()
        await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
        await stream.add_stream(name="USERS", subjects=["users.*.inbox"])
        await stream.add_stream(name="QUEUE", subjects=["queue.>"], retention=RetentionPolicy.WORK_QUEUE)
        streams = '{"ORDERS": ["orders.*"], "USERS": null, "QUEUE": null, "MISSING": null}'
        options = ("--streams", streams, "--nats", server.url)
        status, lines, error = await explain(*options, PERMISSIONS, "orders.1", "me.inbox", "secret")
        assert (status, error) == (1, "")
        assert lines == [
            "allowed  orders.1: subscribe orders.>; history orders.>",
            "  stream ORDERS",
            f"allowed  me.inbox (in NATS: users.7.inbox): subscribe users.7.>; {RECENT}",
            f"  stream USERS, but {SINGLE}",
            "denied  secret: no pattern in subscribe includes secret",
        ]
        assert (await explain(*options, PERMISSIONS, "orders.1"))[0] == 0
        status, lines, _ = await explain(*options, PERMISSIONS, "orders.>")
        assert status == 1
        (reasons,) = lines[1:]
        assert reasons.startswith("  no stream has its history: ")
        assert "ORDERS: the setting 'streams' has only orders.* for it" in reasons
        assert "USERS: it has only users.*.inbox" in reasons
        assert "QUEUE: its retention is 'workqueue'" in reasons
        assert "MISSING: it does not exist" in reasons
        assert (await stream.stream_info("ORDERS")).state.consumer_count == 0
        await client.close()


async def test_missing_permissions_are_named() -> None:
    with NatsServer(jetstream=True, config=restricted("$JS.FC.ORDERS.>")) as server:
        async with administrator(server) as stream:
            await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
        url = f"nats://bridge:bridge@127.0.0.1:{server.port}"
        status, lines, _ = await explain("--streams", '{"ORDERS": null}', "--nats", url, PERMISSIONS, "orders.>")
        assert status == 1
        assert "ORDERS: the NATS user may not publish to $JS.FC.ORDERS.>. Allow these subjects in NATS" in lines[1]


async def test_missing_permission_to_subscribe_is_named_if_the_prefix_is_given() -> None:
    config = restricted(subscribe=["orders.>", "_INBOX.>", "_NATSBRIDGE.other.>"])
    with NatsServer(jetstream=True, config=config) as server:
        async with administrator(server) as stream:
            await stream.add_stream(StreamConfig(name="ORDERS", subjects=["orders.>"], allow_direct=True))
        url = f"nats://bridge:bridge@127.0.0.1:{server.port}"
        options = ("--streams", '{"ORDERS": null}', "--nats", url)
        status, lines, _ = await explain(*options, "--control-prefix", "_NATSBRIDGE.shop", PERMISSIONS, "orders.>")
        assert status == 1
        problem = "ORDERS: the NATS user may not subscribe to _NATSBRIDGE.shop.streams.>. Allow this subject in NATS"
        assert lines[1] == f"  no stream has its history: {problem}"
        for other in (("--control-prefix", "_NATSBRIDGE.other"), ()):
            status, lines, _ = await explain(*options, *other, PERMISSIONS, "orders.>")
            assert (status, lines[1]) == (0, "  stream ORDERS")


@pytest.mark.parametrize("domain", [None, "hub"])
async def test_domain_of_the_server_itself_needs_no_other_permissions(domain: str | None) -> None:
    with NatsServer(jetstream=True, config=restricted(domain="hub")) as server:
        async with administrator(server) as stream:
            await stream.add_stream(name="ORDERS", subjects=["orders.>"], storage="memory", allow_direct=True)
        url = f"nats://bridge:bridge@127.0.0.1:{server.port}"
        options = () if domain is None else ("--jetstream-domain", domain)
        status, lines, _ = await explain(
            "--streams", '{"ORDERS": null}', "--nats", url, *options, PERMISSIONS, "orders.>"
        )
        assert (status, lines[1]) == (0, "  stream ORDERS")


async def test_failure_to_connect_is_an_error() -> None:
    with NatsServer(jetstream=True, config=restricted()) as server:
        url = f"nats://bridge:wrong@127.0.0.1:{server.port}"
        options = ("--streams", '{"ORDERS": null}', "--nats", url)
        status, lines, error = await explain(*options, PERMISSIONS, "orders.>")
        assert (status, lines) == (2, [])
        assert "authorization violation" in error
        assert "wrong" not in error


async def test_invalid_option_is_an_error() -> None:
    status, _, error = await explain("--streams", "[", PERMISSIONS, "orders.>")
    assert status == 2
    assert "'streams' must be" in error
