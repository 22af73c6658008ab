"""Faults in which NATS rejects a request of the bridge."""

import json

from .clients import WebSocketClient
from .environment import SUBSCRIBED, Environment
from .fault import Fault
from .workload import until

__all__ = ["LIMIT_FAULTS"]


def _users(password: str) -> str:
    users = [{"user": "bridge", "password": password}, {"user": "publisher", "password": "p"}]
    return f"authorization: {json.dumps({'users': users})}\nno_auth_user: publisher"


async def _revoke_credentials(env: Environment) -> None:
    async with env.fault():
        env.nats.config = _users("changed")
        env.nats.reload()
        await env.hold(3)
        env.nats.config = _users("b")
        env.nats.reload()


async def _exceed_max_subscriptions(env: Environment) -> None:
    greedy = await env.connect(WebSocketClient("greedy", ("deep.0",)))
    async with env.fault():
        number, reply = 0, None
        while reply is None or reply["success"]:
            number += 1
            reply = await greedy.send_command("subscribe", [f"deep.{number}"])
        await env.sleep(1)
        await greedy.close()


async def _exceed_max_payload(env: Environment) -> None:
    env.nats.config = "max_payload: 1024"
    env.nats.reload()
    await until(lambda: env.nats.monitor("/varz")["max_payload"] == 1024, "NATS has applied its limit")
    async with env.fault():
        # The app gets an error only if the connection is lost before the PONG of its flush arrives.
        await env.request("/publish/deep.0", bytes(2048))
    status, answer = await env.request("/publish/deep.0", bytes(512))
    env.require(status == 204, f"a payload below the limit was rejected: {status} {answer}")


async def _exceed_max_control_line(env: Environment) -> None:
    client = await env.connect(WebSocketClient("long-subject", ("deep.0",)))
    async with env.fault():
        reply = await client.send_command("subscribe", ["deep." + "x" * 250])
        env.require(reply.get("code") == "nats.refused", f"the reply must have the code nats.refused, got {reply}")
        await env.sleep(1)
    await client.close()


LIMIT_FAULTS = (
    Fault(
        "credentials",
        "the bridge's credentials revoked, restored after 3 s",
        _revoke_credentials,
        config=_users("b"),
        settings={"user": "bridge", "password": "b"},
    ),
    Fault(
        "max_subscriptions",
        "a client exceeds NATS's max_subscriptions",
        _exceed_max_subscriptions,
        config=f"max_subscriptions: {len(SUBSCRIBED) + 5}",
        harmless=True,
    ),
    Fault("max_payload", "the app exceeds NATS's max_payload, which was lowered meanwhile", _exceed_max_payload),
    Fault(
        "max_control_line",
        "a client subscribes to a subject that exceeds NATS's max_control_line",
        _exceed_max_control_line,
        config="max_control_line: 256",
    ),
)
