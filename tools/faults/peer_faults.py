"""Faults after which two processes of an app must reach each other again."""

import asyncio
import json

from .bridge import APP_NAME
from .clients import Client, EventClient, WebSocketClient
from .environment import SUBSCRIBED, Environment
from .fault import Fault
from .permission_profiles import OPEN
from .posts import PostingClient
from .publisher import Publisher
from .workload import until

__all__ = ["PEER_FAULTS"]

_DEEP = tuple(f"deep.{number}" for number in range(40))
"""The patterns that fill the limit of subscriptions."""

_ROOM = 12
"""The number of these patterns that the limit allows."""

_CONTROL_SUBSCRIPTIONS = 3
"""The number of control subjects to which each process subscribes."""


def _users(*, control_allowed: bool) -> str:
    control = [f"_NATSBRIDGE.{APP_NAME}.>"] if control_allowed else []
    permissions = {"subscribe": [*OPEN, *control], "publish": control or ["nothing"]}
    users = [{"user": "bridge", "password": "b", "permissions": permissions}, {"user": "publisher", "password": "p"}]
    return f"authorization: {json.dumps({'users': users})}\nno_auth_user: publisher"


async def _revoke_control_permissions(env: Environment) -> None:
    meanwhile, afterwards = [await env.connect(EventClient(f"revoked-{each}", ("orders.>",))) for each in range(2)]
    posting = await _connect_posting(env)
    connections = _connections(env)
    async with env.fault():
        env.nats.config = _users(control_allowed=False)
        env.nats.reload()
        await env.wait_for_control("disconnected")
        env.require(not await env.revoke_from_peer(meanwhile), "a revocation was delivered without permission")
        await env.sleep(3)
        env.require(meanwhile.connected, "a session was revoked from the other process without permission")
        env.nats.config = _users(control_allowed=True)
        env.nats.reload()
        await env.wait_for_control("connected")
        # The revocation is delivered now.
        await _wait_revoked(meanwhile)
    await _check_peer(env, posting, afterwards)
    env.require(_connections(env) == connections, "a process has reconnected to NATS")
    env.require(not env.noticed, "clients were notified, although only the control subjects were affected")


async def _fill_subscriptions(env: Environment) -> None:
    env.add_publisher(Publisher("deep", env.nats, _DEEP, interval=0.2))
    revoked = await env.connect(EventClient("revoked", ("orders.>",)))
    posting = await _connect_posting(env)
    present = await env.connect(WebSocketClient("present", _DEEP[:1]))
    new = [WebSocketClient("new-socket", _DEEP[10:30]), EventClient("new-stream", _DEEP[20:])]
    filling: list[Client] = [present, *new]
    async with env.fault():
        env.nats.kill()
        await env.hold(2)
        await env.wait_for_control("disconnected")
        present.patterns = _DEEP[:20]
        reply = await present.send_command("subscribe", present.patterns)
        env.require(reply["success"], f"a command failed while NATS was disconnected: {reply}")
        await asyncio.gather(*map(env.connect, new))
        env.nats.start()
        await env.wait_for_control("connected")
        await until(
            lambda: all(_refused(client) | _delivered(client) == set(client.patterns) for client in filling),
            "each pattern is refused, or delivers messages",
        )
    refused = set[str]().union(*map(_refused, filling))
    env.require(
        all(_refused(client) == refused.intersection(client.patterns) for client in filling),
        "a pattern was refused to one client only, although the clients share a subscription",
    )
    # The changing pattern of the churning client may have the last place.
    env.require(_ROOM - 1 <= len(_DEEP) - len(refused) <= _ROOM, f"{len(refused)} of {len(_DEEP)} were refused")
    await _check_peer(env, posting, revoked)
    await asyncio.gather(*(client.close() for client in filling))
    # NATS may have refused the changing pattern of the churning client, which subscribes to it again and again.
    expected = {pattern for client in env.others if not client.closed for pattern in client.patterns}
    await until(lambda: set(env.nats.subscriptions()) == expected.union(SUBSCRIBED), "NATS has the other patterns only")


def _refused(client: Client) -> set[str]:
    """Return the patterns that NATS has refused to the client."""
    frames = [frame for _, frame in client.log.entries if frame["type"] == "unsubscribed"]
    return {pattern for frame in frames if frame["code"] == "nats.refused" for pattern in frame["subjects"]}


def _delivered(client: Client) -> set[str]:
    """Return the patterns of which the client has received messages since NATS was connected again."""
    patterns: set[str] | None = None
    for _, frame in client.log.entries:
        if frame["type"] == "status":
            patterns = set() if frame["nats"] == "connected" else None
        elif frame["type"] == "message" and patterns is not None:
            patterns.add(frame.get("pattern", frame["subject"]))
    return patterns or set()


async def _connect_posting(env: Environment) -> PostingClient:
    """Connect a client whose POSTs reach the other process, and wait until some have succeeded."""
    client = PostingClient("posting", ("orders.>",), "open", changing=("news.sport",), addresses=[env.peer_address])
    await env.connect(client)
    await client.wait_for_success()
    return client


async def _check_peer(env: Environment, posting: PostingClient, client: Client) -> None:
    """Check that POSTs to the other process succeed, and that it can revoke a session."""
    failed = posting.failed
    await posting.wait_for_success()
    # One may have been on its way.
    env.require(posting.failed <= failed + 1, f"{posting.failed - failed} POSTs to the other process have failed")
    env.require(await env.revoke_from_peer(client), "a revocation was not delivered")
    await _wait_revoked(client)


async def _wait_revoked(client: Client) -> None:
    await until(lambda: not client.connected, f"the session of {client.log.client} ends")
    await client.close()


def _connections(env: Environment) -> set[int]:
    """Return NATS's numbers for the connections of the bridge's processes."""
    found = env.nats.monitor("/connz?auth=1")["connections"]
    return {each["cid"] for each in found if each["authorized_user"] == "bridge"}


PEER_FAULTS = (
    Fault(
        "control_permissions",
        "the bridge's permissions for its control subjects revoked, restored after 3 s",
        _revoke_control_permissions,
        config=_users(control_allowed=True),
        settings={"user": "bridge", "password": "b"},
        with_peer=True,
        notice_within=None,
        harmless=True,
    ),
    Fault(
        "full_subscriptions",
        "nats-server killed; meanwhile clients subscribe to more than its max_subscriptions allows",
        _fill_subscriptions,
        config=f"max_subscriptions: {_CONTROL_SUBSCRIPTIONS + len(SUBSCRIBED) + _ROOM}",
        with_peer=True,
    ),
)
