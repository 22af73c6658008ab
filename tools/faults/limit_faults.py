"""NATS does not let the bridge do something."""

import json
from typing import Final

from .clients import WebSocketClient
from .environment import FOLLOWED, Stage
from .fault import Fault
from .workload import until

__all__ = ["LIMIT_FAULTS"]


def _users(password: str) -> str:
    users = [{"user": "bridge", "password": password}, {"user": "publisher", "password": "p"}]
    return f"authorization: {json.dumps({'users': users})}\nno_auth_user: publisher"


async def _revoke(stage: Stage) -> None:
    async with stage.fault():
        stage.nats.config = _users("changed")
        stage.nats.reload()
        await stage.hold(3)
        stage.nats.config = _users("b")
        stage.nats.reload()


async def _follow_too_much(stage: Stage) -> None:
    greedy = await stage.join(WebSocketClient("greedy", ("deep.0",)))
    async with stage.fault():
        number, reply = 0, None
        while reply is None or reply["success"]:
            number += 1
            reply = await greedy.ask("subscribe", [f"deep.{number}"])
        await stage.hold(1)
        await greedy.leave()


async def _publish_too_much(stage: Stage) -> None:
    stage.nats.config = "max_payload: 1024"
    stage.nats.reload()
    await until(lambda: stage.nats.monitor("/varz")["max_payload"] == 1024, "NATS has read its limit")
    async with stage.fault():
        # Whether the app is told depends on who is first, the loss of the connection or the PONG of its flush.
        await stage.ask_bridge("/publish/deep.0", bytes(2048))
    status, answer = await stage.ask_bridge("/publish/deep.0", bytes(512))
    stage.require(status == 204, f"a payload under the limit was not taken: {status} {answer}")


async def _ask_for_too_long_a_subject(stage: Stage) -> None:
    rude = await stage.join(WebSocketClient("rude", ("deep.0",)))
    async with stage.fault():
        reply = await rude.ask("subscribe", ["deep." + "x" * 250])
        stage.require(reply.get("code") == "nats.refused", f"the client was answered {reply}")
        await stage.hold(1)
    await rude.leave()


LIMIT_FAULTS: Final = (
    Fault(
        "credentials",
        "the bridge's credentials revoked, given back after 3 s",
        _revoke,
        config=_users("b"),
        settings={"user": "bridge", "password": "b"},
    ),
    Fault(
        "max_subscriptions",
        "a client goes over NATS's max_subscriptions",
        _follow_too_much,
        config=f"max_subscriptions: {len(FOLLOWED) + 5}",
        harmless=True,
    ),
    Fault("max_payload", "the app goes over NATS's max_payload, which was lowered meanwhile", _publish_too_much),
    Fault(
        "max_control_line",
        "a client asks for a subject over NATS's max_control_line",
        _ask_for_too_long_a_subject,
        config="max_control_line: 256",
    ),
)
