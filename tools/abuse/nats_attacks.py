"""Attacks with the help of NATS: permissions that become narrower, and messages on the control subjects."""

import asyncio
import json
import time
from abc import ABC, abstractmethod

from .attack import Attack
from .attacker import Attacker, pace, together
from .connections import WebSocket
from .harm import amount
from .names import CONTROL_PREFIX

__all__ = ["NATS_ATTACKS"]

_WORKER = "A" * 16
_KEY = "abuse-abuse-abuse-abuse-abuse-abuse-abuse"
_TIMES_PER_SECOND = 2.0
_SUBSCRIBE_RATE = 1000
"""The default of ``max_subscribe_rate``."""
_BRIDGE = {"user": "bridge", "password": "b"}


def _users(subscribe: list[str]) -> str:
    permissions = {"subscribe": [*subscribe, f"{CONTROL_PREFIX}.>"], "publish": [f"{CONTROL_PREFIX}.>"]}
    users = [_BRIDGE | {"permissions": permissions}, {"user": "publisher", "password": "p"}]
    return f"authorization: {json.dumps({'users': users})}\nno_auth_user: publisher"


class _RefusedPatterns(Attacker):
    """WebSockets of three clients with 12,000 patterns, and some that keep subscribing to what NATS refuses."""

    async def _prepare(self) -> None:
        loop = asyncio.get_running_loop()
        began, sockets = loop.time(), self.target.sized(96, 8)
        await together(self._open, sockets, at_once=sockets)
        subscribed = began + sockets * 125 / _SUBSCRIBE_RATE + 1
        await asyncio.sleep(max(0.0, subscribed - loop.time()))

    async def _open(self, number: int) -> None:
        socket = await self._connect(number)
        await socket.command("subscribe", [f"allowed.{number}.{each}" for each in range(125)])
        self.keep(socket)

    async def _connect(self, number: int) -> WebSocket:
        return await WebSocket.open(self.target.port, "profile=all", self.target.address(number % 3))

    async def _attack(self) -> None:
        sockets = self.target.sized(16, 2)
        await asyncio.gather(
            *(self._subscribe(number, number / sockets / _TIMES_PER_SECOND) for number in range(sockets))
        )

    async def _subscribe(self, number: int, delay: float) -> None:
        socket = await self._connect(number)
        await asyncio.sleep(delay)
        while True:
            async with pace(_TIMES_PER_SECOND):
                await socket.command("subscribe", [f"refused.{number}.{each}" for each in range(128)])
                self.counts["commands"] += 1


class _Control(Attacker, ABC):
    """A program that may publish on the control subjects. Subclasses decide what."""

    rate = 10.0
    at_once = 1

    async def _prepare(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.target.nats_port)
        self._writer.write(b'CONNECT {"verbose":false}\r\n')

    async def _attack(self) -> None:
        payload = self.payload()
        number = 0
        while True:
            async with pace(self.rate):
                lines = []
                for _ in range(self.at_once):
                    number += 1
                    subject = f"{CONTROL_PREFIX}.all.permissions.{_WORKER}.{int(time.time())}-{number}"
                    lines.append(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload))
                self._writer.write(b"".join(lines))
                await self._writer.drain()
                self.counts["forged"] += self.at_once

    @abstractmethod
    def payload(self) -> bytes:
        """Return the payload of each message."""


class _ForgedRevocations(_Control):
    """Announcements by which another worker would revoke the honest client."""

    def payload(self) -> bytes:
        """Return a revocation of the honest client."""
        return json.dumps({"worker": _WORKER, "identity": "honest", "session": None, "permissions": None}).encode()


class _Garbage(_Control):
    """Announcements that can't be decoded, 5,000 per second."""

    at_once = 500

    def payload(self) -> bytes:
        """Return an invalid announcement."""
        return b"{}"


NATS_ATTACKS = (
    Attack(
        "refused-patterns",
        "WebSockets of 3 clients hold 12,000 patterns, and 16 more subscribe to patterns that NATS refuses, 4,000/s",
        _RefusedPatterns,
        settings=_BRIDGE,
        unlimited={"max_subscribe_rate": 100_000},
        lifted=("refusals",),
        config=_users(["honest.>", "fresh.>", "allowed.>"]),
    ),
    Attack(
        "forged-control",
        "another user of the NATS account publishes revocations of the honest client, 10/s",
        _ForgedRevocations,
        amount("times that the honest client is disconnected", "disconnects", 1),
        limited={"control_key": _KEY},
    ),
    Attack(
        "control-log",
        "another user of the NATS account publishes 5,000 invalid messages/s on a control subject",
        _Garbage,
        amount("log lines", "log lines", 1000),
        lifted=("log",),
    ),
)
