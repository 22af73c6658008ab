"""What is measured. Each scene makes its cases from sizes, whose defaults are those of a full run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .subscribers import Audience, drawn_subjects, own_subjects, shared_patterns, single_subject

__all__ = ["SCENES", "Case", "Scene"]


@dataclass(frozen=True)
class Case:
    """One thing that is done to each contender, in servers started for it.

    Attributes:
        audience: Who follows what.
        messages: How many are published in each burst; 0: none at all.
        rate: Messages a second within a burst; 0 is as fast as NATS takes them.
        size: Bytes of each payload.
        bursts: How many bursts, each begun so many seconds (``pause``) after the last delivery of the one before.
        burst_seconds: No further burst is begun after this time.
        warmup: Messages before those that are measured, as fast as NATS takes them.
        at_once: How many clients connect at the same time.
        samples: About how many clients' messages are looked into.
        memory: Resident memory is read: before the clients come, with them, and after the messages.
        settle: It counts as settled when it stays the same for so many seconds.
        settings: Further settings of the bridge.
        command: What is sent by POST, so many times (``messages``) for each client at each of two workers, instead of
            anything being published.
    """

    name: str
    audience: Audience
    messages: int = 0
    rate: float = 0.0
    size: int = 128
    bursts: int = 1
    pause: float = 0.5
    burst_seconds: float = 20.0
    warmup: int = 50
    at_once: int = 200
    samples: int = 50
    memory: bool = False
    settle: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Scene:
    """Something to find out.

    Attributes:
        make: Makes the cases.
        small: The sizes of a run that looks for correctness only.
        figures: The figures that answer the question.
        contenders: Those that it is about; empty: all.
        ordered: Order across a client's subscriptions is part of the answer.
        unit: What the names of the cases are numbers of, where it is about growth.
        cores: With fewer, its deliveries a second say nothing: it is about servers that use several.
    """

    name: str
    title: str
    make: Callable[..., Sequence[Case]]
    small: Mapping[str, Any]
    figures: tuple[str, ...]
    contenders: tuple[str, ...] = ()
    ordered: bool = False
    unit: str = ""
    cores: int = 1

    def tells(self, figure: str, cores: int) -> bool:
        """Whether the figure says anything on a machine of so many cores."""
        return figure != "rate" or cores >= self.cores

    def cases(self, *, small: bool = False) -> Sequence[Case]:
        """The cases, of full size or small."""
        return self.make(**(self.small if small else {}))


def _steady(
    clients: int = 1_000, rates: Sequence[float] = (100, 25), seconds: float = 6, size: int = 128
) -> Sequence[Case]:
    audience = single_subject(clients)
    return [Case(f"{rate:g}/s", audience, round(rate * seconds), rate, size) for rate in rates]


def _burst(clients: int = 1_000, bursts: int = 50, messages: int = 300, pause: float = 0.5) -> Sequence[Case]:
    audience = single_subject(clients)
    return [Case(f"{messages} messages", audience, messages, bursts=bursts, pause=pause, warmup=messages)]


def _own(clients: int = 1_000, messages: int = 50_000) -> Sequence[Case]:
    return [Case(f"{clients:,} subjects", own_subjects(clients), messages, warmup=clients)]


def _workers(
    clients: int = 1_000,
    rate: float = 100,
    seconds: float = 6,
    bursts: int = 50,
    messages: int = 300,
    pause: float = 0.2,
) -> Sequence[Case]:
    return [*_steady(clients, (rate,), seconds), *_burst(clients, bursts, messages, pause)]


def _idle(clients: int = 5_000, settle: float = 1.0) -> Sequence[Case]:
    return [Case(f"{clients:,} clients", single_subject(clients), memory=True, settle=settle)]


def _connect(clients: int = 1_000) -> Sequence[Case]:
    return [Case(f"{clients:,} clients", single_subject(clients), at_once=clients)]


def _more_clients(
    clients: Sequence[int] = (10, 100, 1_000, 5_000),
    deliveries: float = 40_000,
    highest_rate: float = 2_000,
    seconds: float = 4,
) -> Sequence[Case]:
    rates = {count: min(deliveries / count, highest_rate) for count in clients}
    return [
        Case(f"{count:,}", single_subject(count), round(rate * seconds), rate, warmup=10)
        for count, rate in rates.items()
    ]


def _more_patterns(
    patterns: Sequence[int] = (1, 100, 10_000),
    clients: int = 100,
    followers: int = 10,
    rate: float = 1_000,
    seconds: float = 4,
) -> Sequence[Case]:
    settings = {"max_subscriptions": max(patterns)}
    return [
        Case(f"{count:,}", shared_patterns(clients, count, followers), round(rate * seconds), rate, settings=settings)
        for count in patterns
    ]


def _larger_payloads(
    sizes: Sequence[int] = (64, 1_024, 16_384, 65_536), clients: int = 100, rate: float = 25, seconds: float = 4
) -> Sequence[Case]:
    audience = single_subject(clients)
    return [Case(f"{size:,}", audience, round(rate * seconds), rate, size, warmup=10) for size in sizes]


def _overlap(
    clients: int = 100, subjects: int = 100, followed: int = 50, rate: float = 1_000, seconds: float = 5
) -> Sequence[Case]:
    audience = drawn_subjects(clients, subjects, followed)
    return [Case(f"{clients:,} clients", audience, round(rate * seconds), rate, samples=clients)]


def _stalled(
    clients: int = 1_000,
    stalled: Sequence[int] = (0, 100),
    rate: float = 25,
    size: int = 1_024,
    seconds: float = 10,
    settle: float = 1.0,
) -> Sequence[Case]:
    messages = round(rate * seconds)
    return [
        Case(f"{count} stalled", single_subject(clients, count), messages, rate, size, memory=True, settle=settle)
        for count in stalled
    ]


def _relay(posts: int = 400, at_once: Sequence[int] = (1, 20)) -> Sequence[Case]:
    # Nobody could command a session as fast as this.
    settings = {"command_rate": 1_000_000, "command_burst": 1_000_000}
    return [
        Case(f"{command}, {count} at once", own_subjects(count), posts // count, settings=settings, command=command)
        for count in at_once
        for command in ("subscribe", "unsubscribe")
    ]


_CPU: Final = ("cpu", "broker_cpu")
_LATENCY: Final = ("p50", "p99", "max")

SCENES: Final = {
    scene.name: scene
    for scene in (
        Scene(
            "steady",
            "Many clients on one subject, at a steady rate",
            _steady,
            {"clients": 6, "rates": (50,), "seconds": 0.3},
            (*_CPU, *_LATENCY, "busy"),
        ),
        Scene(
            "burst",
            "Many clients on one subject, in bursts",
            _burst,
            {"clients": 6, "bursts": 3, "messages": 20, "pause": 0.05},
            (*_CPU, "rate", "p99", "busy"),
        ),
        Scene(
            "own",
            "Each client on a subject of its own, as fast as NATS takes the messages",
            _own,
            {"clients": 6, "messages": 600},
            (*_CPU, "rate", "busy"),
        ),
        Scene(
            "workers",
            "Many clients on one subject, shared out among workers",
            _workers,
            {"clients": 6, "rate": 50, "seconds": 0.3, "bursts": 3, "messages": 20, "pause": 0.05},
            (*_CPU, "rate", *_LATENCY, "fullest", "busy"),
            contenders=("bridge-ws", "bridge-ws-2"),
            cores=4,
        ),
        Scene(
            "idle",
            "Memory of idle clients",
            _idle,
            {"clients": 10, "settle": 0.05},
            ("memory",),
        ),
        Scene(
            "connect",
            "Clients that all connect at once",
            _connect,
            {"clients": 10},
            ("connect", "connect_cpu"),
        ),
        Scene(
            "growth-clients",
            "More clients on one subject, about as many deliveries a second",
            _more_clients,
            {"clients": (8,), "deliveries": 400, "seconds": 0.2},
            (*_CPU, *_LATENCY, "busy"),
            unit="clients",
        ),
        Scene(
            "growth-patterns",
            "More patterns, each followed by as many clients",
            _more_patterns,
            {"patterns": (2_000,), "clients": 5, "followers": 2, "rate": 10_000, "seconds": 0.2},
            (*_CPU, *_LATENCY, "busy"),
            unit="patterns",
        ),
        Scene(
            "growth-payload",
            "Larger payloads",
            _larger_payloads,
            {"sizes": (65_536,), "clients": 4, "seconds": 0.2},
            (*_CPU, *_LATENCY, "busy"),
            unit="bytes of payload",
        ),
        Scene(
            "overlap",
            "Each client on many subjects, drawn by lot",
            _overlap,
            {"clients": 6, "subjects": 8, "followed": 4, "seconds": 0.3},
            (*_CPU, *_LATENCY, "in_order", "busy"),
            ordered=True,
        ),
        Scene(
            "stalled",
            "Some clients never read: what the others get",
            _stalled,
            {"clients": 6, "stalled": (2,), "seconds": 0.3, "settle": 0.05},
            (*_CPU, *_LATENCY, "growth", "busy"),
            contenders=("bridge-ws", "bridge-sse", "nats-ws"),
        ),
        Scene(
            "relay",
            "Commands by POST, to the worker that holds the event stream and to another",
            _relay,
            {"posts": 9, "at_once": (3,)},
            ("local", "relayed", "relay", "busy"),
            contenders=("bridge-sse-2",),
        ),
    )
}
