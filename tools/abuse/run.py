"""Run an attack once: a quiet time, then the attack, against a bridge with its limits or without them."""

import contextlib
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sanic_nats_bridge.testing import NatsServer, NatsServerError

from ..benchmarks.publisher import Publication, Publisher
from ..harness.processes import Server, prefer, python_server, resident_bytes
from ..harness.remote import Remote, RemoteError, remote
from .attack import Attack
from .attacker import Attacker, Target
from .honest import HonestClients
from .names import CONTROL_PREFIX
from .results import Observation, Run, Seen

__all__ = ["observe", "run"]

_TIMEOUT_SECONDS = 60.0
_QUIET_SHARE = 0.6
_LEAST_QUIET_SECONDS = 1.0
_CONNECTION_NAME = "sanic-nats-bridge"

T = TypeVar("T")


def run(attack: Attack, number: int, seconds: float, *, small: bool = False) -> Run:
    """Run an attack against a bridge with its limits, and then without them.

    Args:
        attack: The attack.
        number: The number of the round.
        seconds: The time of the attack.
        small: Whether the attack is a tiny one, for a test of this tool itself.
    """
    bounded = observe(attack, seconds, limits=True, small=small)
    control = observe(attack, seconds, limits=False, small=small) if attack.has_control else None
    return Run(attack.name, number, bounded, control)


def observe(attack: Attack, seconds: float, *, limits: bool, small: bool = False) -> Observation:
    """Run an attack against a bridge. An error that ends the run is a part of what is returned."""
    observation = Observation()
    try:
        with _environment(attack, limits=limits, small=small) as env:
            env.observe(observation, seconds)
    except (RemoteError, RuntimeError, OSError, NatsServerError) as error:
        observation.error = f"{type(error).__name__}: {error}"
    return observation


class _Environment:
    """NATS, the app, a publisher, the honest clients and the attackers, each in a process of its own."""

    def __init__(
        self,
        attack: Attack,
        nats: NatsServer,
        app: Server,
        publisher: Remote[Publisher],
        honest: Remote[HonestClients],
        attackers: contextlib.ExitStack,
        attacker: Remote[Attacker],
    ) -> None:
        self._attack = attack
        self._nats = nats
        self._app = app
        self._publisher = publisher
        self._honest = honest
        self._end_attackers = attackers.close
        self._attacker = attacker
        self._next = 0

    def observe(self, observation: Observation, seconds: float) -> None:
        """Run the quiet time, then the attack, and note what happens."""
        facts = observation.facts
        self._honest.call(HonestClients.connect)
        quiet = max(seconds * _QUIET_SHARE, _LEAST_QUIET_SECONDS)
        before = self._counts()
        observation.quiet = self._follow(quiet)
        facts["quiet NATS bytes per message"] = (self._counts()["NATS bytes"] - before["NATS bytes"]) / max(
            observation.quiet.published, 1
        )
        self._honest.call(HonestClients.counted)
        before = self._counts()
        self._attacker.call(Attacker.prepare)
        prepared = self._counts()
        onset = self._attack.onset
        self._attacker.begin(Attacker.attack, onset, seconds)
        if onset:
            observation.onset = self._follow(onset)
            self._honest.call(HonestClients.counted)
        observation.attacked = self._follow(seconds)
        facts.update(self._attacker.result())
        if self._attack.harm.in_memory:
            _get(self._app.port, "/trim")
        memory = resident_bytes(self._app.pid)
        # Else the worker would still be busy with what they have sent.
        self._end_attackers()
        after = self._counts()
        facts.update(self._honest.call(HonestClients.counted))
        facts.update({name: after[name] - before[name] for name in after})
        facts["memory"] = memory - before["memory"]
        # What the attackers have done before doesn't belong to these.
        facts["NATS messages"] = after["NATS messages"] - prepared["NATS messages"]
        facts["NATS bytes per message"] = (
            after["NATS bytes"] - prepared["NATS bytes"]
        ) / observation.attacked.published
        facts["published"] = observation.attacked.published
        facts["disconnects"] = observation.onset.disconnects + observation.attacked.disconnects
        facts["longest delay"] = max(observation.onset.longest, observation.attacked.longest)
        facts["seconds"] = seconds

    def _follow(self, seconds: float) -> Seen:
        stream = self._attack.stream
        publication = Publication(self._next, round(seconds * stream.rate), stream.size, stream.rate)
        self._honest.begin(HonestClients.follow, publication.first, publication.count, seconds)
        self._publisher.call(Publisher.publish, publication)
        self._next = publication.end
        seen: Seen = self._honest.result()
        return seen

    def _counts(self) -> dict[str, float]:
        """Return what the worker and NATS have counted since they were started."""
        connections = self._nats.monitor("/connz?state=all")["connections"]
        own = [each for each in connections if each.get("name") == _CONNECTION_NAME]
        return {
            **_get(self._app.port, "/facts"),
            "memory": float(resident_bytes(self._app.pid)),
            "CPU seconds": self._app.cpu_ns / 1e9,
            "NATS messages": float(sum(each["out_msgs"] for each in own)),
            "messages to NATS": float(sum(each["in_msgs"] for each in own)),
            "NATS bytes": float(sum(each["out_bytes"] for each in own)),
        }


@contextlib.contextmanager
def _environment(attack: Attack, *, limits: bool, small: bool) -> Iterator[_Environment]:
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(NatsServer(config=attack.config))
        preferred = nats.pid is not None and prefer(nats.pid)
        settings = {"servers": nats.url, **attack.settings, **(attack.limited if limits else attack.unlimited)}
        lifted = () if limits else attack.lifted
        app = stack.enter_context(python_server("tools.abuse.app", json.dumps(settings), *lifted))
        stream = attack.stream
        publisher = stack.enter_context(remote(_preferred, Publisher, nats.port, (stream.subject,)))
        honest = stack.enter_context(remote(_preferred, HonestClients, app.port, stream.subject))
        create = attack.attacker if limits else attack.control_attacker or attack.attacker
        attackers = stack.enter_context(contextlib.ExitStack())
        target = Target(app.port, nats.port, CONTROL_PREFIX, preferred, small)
        attacker = attackers.enter_context(remote(create, target))
        yield _Environment(attack, nats, app, publisher, honest, attackers, attacker)


def _preferred(create: Callable[..., T], *arguments: Any) -> T:
    """Create an object in a process with a high priority."""
    os.setsid()
    prefer(os.getpid())
    return create(*arguments)


def _get(port: int, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=_TIMEOUT_SECONDS) as response:
        found: dict[str, Any] = json.load(response)
        return found
