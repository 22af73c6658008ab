"""The scenarios. Each one creates its cases from sizes, whose defaults are those of a full run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .subscribers import Subscribers, own_subjects, random_subjects, shared_patterns, single_subject

__all__ = ["SCENARIOS", "Case", "Scenario"]


@dataclass(frozen=True)
class Case:
    """One workload, run against each target in newly started servers.

    Attributes:
        subscribers: The clients and their subscriptions.
        messages: The number of messages in each burst; 0 publishes none. With a ``command``, the number of commands
            for each client at each of two workers.
        rate: Messages per second within a burst. 0 publishes as fast as NATS accepts them.
        size: Bytes of each payload.
        bursts: The number of bursts.
        pause: Seconds from the last delivery of a burst to the start of the next one.
        burst_seconds: Seconds after which no further burst is started.
        warmup: The number of messages before those that are measured, published as fast as NATS accepts them.
        concurrency: The number of clients that connect at the same time.
        samples: The approximate number of clients whose messages are parsed.
        memory: Measure resident memory before the clients connect, after that, and after the messages.
        settle: Seconds for which resident memory must stay the same to count as settled.
        settings: Further settings of the bridge.
        command: The command to send by POST, instead of publishing messages.
        history: The measurement of history to make, see `tools.benchmarks.history`. Then ``messages`` are those that
            clients miss, ``bursts`` the repetitions, and ``pause`` the seconds of each turn with live messages.
        publish: What the clients send: ``publish``, ``ack`` or ``request``. Then ``messages`` is the number of those,
            and ``bursts`` the number that a client sends at once.
    """

    name: str
    subscribers: Subscribers
    messages: int = 0
    rate: float = 0.0
    size: int = 128
    bursts: int = 1
    pause: float = 0.5
    burst_seconds: float = 20.0
    warmup: int = 50
    concurrency: int = 200
    samples: int = 50
    memory: bool = False
    settle: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    history: str = ""
    publish: str = ""


@dataclass(frozen=True)
class Scenario:
    """A question, with the cases and metrics that answer it.

    Attributes:
        make: Creates the cases.
        small: The sizes of a run that tests correctness only.
        metrics: The metrics that answer the question.
        targets: The targets to which the scenario applies; empty for all.
        ordered: Order across the subscriptions of a client is part of the answer.
        unit: The unit of the names of the cases, if they are the sizes of a growth.
        cores: The number of cores below which deliveries per second are meaningless, because the servers use several.
    """

    name: str
    title: str
    make: Callable[..., Sequence[Case]]
    small: Mapping[str, Any]
    metrics: tuple[str, ...]
    targets: tuple[str, ...] = ()
    ordered: bool = False
    unit: str = ""
    cores: int = 1

    def is_meaningful(self, metric: str, cores: int) -> bool:
        """Return True if the metric is meaningful on a machine with this number of cores."""
        return metric != "rate" or cores >= self.cores

    def cases(self, *, small: bool = False) -> Sequence[Case]:
        """Return the cases, of full size or small."""
        return self.make(**(self.small if small else {}))


def _steady(
    clients: int = 1_000, rates: Sequence[float] = (100, 25), seconds: float = 6, size: int = 128
) -> Sequence[Case]:
    subscribers = single_subject(clients)
    return [Case(f"{rate:g}/s", subscribers, round(rate * seconds), rate, size) for rate in rates]


def _burst(clients: int = 1_000, bursts: int = 50, messages: int = 300, pause: float = 0.5) -> Sequence[Case]:
    subscribers = single_subject(clients)
    return [Case(f"{messages} messages", subscribers, messages, bursts=bursts, pause=pause, warmup=messages)]


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
    return [Case(f"{clients:,} clients", single_subject(clients), concurrency=clients)]


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
    per_pattern: int = 10,
    rate: float = 1_000,
    seconds: float = 4,
) -> Sequence[Case]:
    settings = {"max_subscriptions": max(patterns), "command_burst": max(patterns)}
    return [
        Case(f"{count:,}", shared_patterns(clients, count, per_pattern), round(rate * seconds), rate, settings=settings)
        for count in patterns
    ]


def _larger_payloads(
    sizes: Sequence[int] = (64, 1_024, 16_384, 65_536), clients: int = 100, rate: float = 25, seconds: float = 4
) -> Sequence[Case]:
    subscribers = single_subject(clients)
    return [Case(f"{size:,}", subscribers, round(rate * seconds), rate, size, warmup=10) for size in sizes]


def _overlap(
    clients: int = 100, subjects: int = 100, per_client: int = 50, rate: float = 1_000, seconds: float = 5
) -> Sequence[Case]:
    subscribers = random_subjects(clients, subjects, per_client)
    return [Case(f"{clients:,} clients", subscribers, round(rate * seconds), rate, samples=clients)]


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


def _relay(posts: int = 400, concurrencies: Sequence[int] = (1, 20)) -> Sequence[Case]:
    # The defaults would limit the rate of these commands.
    settings = {"command_rate": 1_000_000, "command_burst": 1_000_000}
    return [
        Case(f"{command}, {count} at once", own_subjects(count), posts // count, settings=settings, command=command)
        for count in concurrencies
        for command in ("subscribe", "unsubscribe")
    ]


_MODES = ("one by one", "bursts")


def _publish(
    clients: int = 20,
    rate: float = 500,
    seconds: float = 6,
    at_once: int = 20,
    rounds: int = 25,
    modes: Mapping[str, Sequence[str]] = MappingProxyType(dict.fromkeys(("publish", "ack", "request"), _MODES)),
) -> Sequence[Case]:
    # The defaults would limit the rate of these commands.
    settings = {
        "streams": {"HISTORY": None},
        "publish": [">"],
        "request": [">"],
        "publish_rate": 1_000_000,
        "publish_burst": 1_000_000,
        "max_requests": 1_000,
    }
    titles = {"publish": "publish", "ack": "publish with ack", "request": "request"}
    sizes = {"one by one": (round(rate * seconds), rate, 1), "bursts": (clients * at_once * rounds, 0, at_once)}
    return [
        Case(
            f"{titles[kind]}, {mode}",
            single_subject(clients),
            *sizes[mode][:2],
            bursts=sizes[mode][2],
            settings=settings,
            publish=kind,
        )
        for kind, its_modes in modes.items()
        for mode in its_modes
    ]


def _herd(clients: int = 1_000, missed: int = 300, pairs: int = 3) -> Sequence[Case]:
    # What each client names is one position, so every client with a subject of its own has missed few messages.
    shared, own = single_subject(clients, subject="history.all"), own_subjects(clients, "history.own")
    # By default no history is allowed, and no permission is needed.
    settings = {"history": [], "command_burst": 1_000}
    return [
        Case(name, subscribers, missed, bursts=pairs, settings=settings, history=kind)
        for name, subscribers, kind in (
            ("one pattern", shared, "herd"),
            ("own patterns", own, "herd"),
            ("one pattern, other worker", shared, "herd-elsewhere"),
            ("own patterns, other worker", own, "herd-elsewhere"),
        )
    ]


def _replay(
    messages: int = 10_000, clients: int = 20, rate: float = 200, seconds: float = 2, turns: int = 4
) -> Sequence[Case]:
    return [
        Case(name, single_subject(clients), messages, rate, bursts=turns, pause=seconds, samples=clients, history=kind)
        for name, kind in (
            ("from NATS", "replay-stored"),
            ("from memory", "replay-window"),
            ("from memory, again", "replay-again"),
        )
    ]


def _stored(
    clients: Sequence[int] = (1, 100),
    rates: Sequence[float] = (1_000, 200),
    seconds: float = 1,
    burst: int = 2_000,
    turns: int = 15,
) -> Sequence[Case]:
    # Messages that arrive one by one cost many system calls, beside which the difference is small.
    return [
        Case(
            f"{count:,} {'clients' if count > 1 else 'client'}, {name}",
            single_subject(count, subject="history.live"),
            messages,
            each_rate,
            bursts=turns,
            history="stored",
        )
        for count, rate in zip(clients, rates, strict=True)
        for name, messages, each_rate in (("steady", round(rate * seconds), rate), ("bursts", burst, 0))
    ]


def _bucket(keys: int = 10_000, repetitions: int = 4) -> Sequence[Case]:
    return [Case(f"{keys:,} keys", single_subject(1), keys, bursts=repetitions, history="bucket")]


def _memory(
    sizes: Sequence[int] = (64, 1_024), buffer_bytes: int = 32 * 1024 * 1024, settle: float = 1.0
) -> Sequence[Case]:
    # Enough messages that the windows, and the encoded messages beside them, are full.
    return [
        Case(
            f"{size:,} bytes",
            single_subject(1, subject="history.memory"),
            2 * buffer_bytes // (size + 200),
            size=size,
            settings={
                "history_buffer_bytes": buffer_bytes,
                "max_replay_messages": buffer_bytes // (size + 200) // 2,
                "max_replay_bytes": 4 * buffer_bytes,
            },
            settle=settle,
            history="memory",
        )
        for size in sizes
    ]


_CPU = ("cpu", "broker_cpu")
_LATENCY = ("p50", "p99", "max")

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "steady",
            "Many clients on one subject, at a steady rate",
            _steady,
            {"clients": 6, "rates": (50,), "seconds": 0.3},
            (*_CPU, *_LATENCY, "busy"),
        ),
        Scenario(
            "burst",
            "Many clients on one subject, in bursts",
            _burst,
            {"clients": 6, "bursts": 3, "messages": 20, "pause": 0.05},
            (*_CPU, "rate", "p99", "busy"),
        ),
        Scenario(
            "own",
            "Each client on a subject of its own, as fast as NATS accepts the messages",
            _own,
            {"clients": 6, "messages": 600},
            (*_CPU, "rate", "busy"),
        ),
        Scenario(
            "workers",
            "Many clients on one subject, distributed over workers",
            _workers,
            {"clients": 6, "rate": 50, "seconds": 0.3, "bursts": 3, "messages": 20, "pause": 0.05},
            (*_CPU, "rate", *_LATENCY, "fullest", "busy"),
            targets=("bridge-ws", "bridge-ws-2"),
            cores=4,
        ),
        Scenario(
            "idle",
            "Memory of idle clients",
            _idle,
            {"clients": 10, "settle": 0.05},
            ("memory",),
        ),
        Scenario(
            "connect",
            "Clients that all connect at once",
            _connect,
            {"clients": 10},
            ("connect", "connect_cpu"),
        ),
        Scenario(
            "growth-clients",
            "More clients on one subject, with about the same deliveries per second",
            _more_clients,
            {"clients": (8,), "deliveries": 400, "seconds": 0.2},
            (*_CPU, *_LATENCY, "busy"),
            unit="clients",
        ),
        Scenario(
            "growth-patterns",
            "More patterns, each with the same number of subscribers",
            _more_patterns,
            {"patterns": (2_000,), "clients": 5, "per_pattern": 2, "rate": 10_000, "seconds": 0.2},
            (*_CPU, *_LATENCY, "busy"),
            unit="patterns",
        ),
        Scenario(
            "growth-payload",
            "Larger payloads",
            _larger_payloads,
            {"sizes": (65_536,), "clients": 4, "seconds": 0.2},
            (*_CPU, *_LATENCY, "busy"),
            unit="bytes of payload",
        ),
        Scenario(
            "overlap",
            "Each client on many subjects, chosen at random",
            _overlap,
            {"clients": 6, "subjects": 8, "per_client": 4, "seconds": 0.3},
            (*_CPU, *_LATENCY, "in_order", "busy"),
            ordered=True,
        ),
        Scenario(
            "stalled",
            "Some clients never read: deliveries to the others",
            _stalled,
            {"clients": 6, "stalled": (2,), "seconds": 0.3, "settle": 0.05},
            (*_CPU, *_LATENCY, "growth", "busy"),
            targets=("bridge-ws", "bridge-sse", "nats-ws"),
        ),
        Scenario(
            "relay",
            "Commands by POST, to the worker that holds the event stream and to another",
            _relay,
            {"posts": 9, "concurrencies": (3,)},
            ("local", "relayed", "relay", "busy"),
            targets=("bridge-sse-2",),
        ),
        Scenario(
            "publish",
            "Publishes and requests of clients",
            _publish,
            {
                "clients": 2,
                "rate": 50,
                "seconds": 0.2,
                "at_once": 2,
                "rounds": 2,
                "modes": {"publish": ["one by one"], "ack": ["bursts"], "request": ["one by one"]},
            },
            ("command_cpu", "command_broker_cpu", "answer_p50", "answer_p99", "busy"),
            targets=("bridge-ws", "nats-ws"),
        ),
        Scenario(
            "history-herd",
            "Clients that all reconnect at once, with and without missed messages",
            _herd,
            {"clients": 6, "missed": 20, "pairs": 2},
            ("plain_cpu", "resume_cpu", "extra_cpu", "requests", "busy"),
            targets=("bridge-ws-streams-2",),
        ),
        Scenario(
            "history-replay",
            "Replays of many messages, and live messages of other clients meanwhile",
            _replay,
            {"messages": 600, "clients": 2, "rate": 50, "seconds": 0.2, "turns": 2},
            ("message_cpu", "p99_alone", "p99_elsewhere", "p99_beside", "harm", "busy"),
            targets=("bridge-ws-streams-2",),
        ),
        Scenario(
            "history-stored",
            "Live messages that a stream stores, next to others",
            _stored,
            {"clients": (1, 3), "rates": (50, 50), "seconds": 0.2, "burst": 100, "turns": 2},
            ("core_cpu", "stored_cpu", "added_cpu", "core_p50", "stored_p50", "p50_ratio", "busy"),
            targets=("bridge-ws-streams",),
        ),
        Scenario(
            "history-bucket",
            "The state of a key-value bucket",
            _bucket,
            {"keys": 600, "repetitions": 2},
            ("state_cpu", "busy"),
            targets=("bridge-ws-streams",),
        ),
        Scenario(
            "history-memory",
            "Memory of full windows",
            _memory,
            {"sizes": (64,), "buffer_bytes": 1024 * 1024, "settle": 0.05},
            ("growth", "buffer_share"),
            targets=("bridge-ws-streams",),
        ),
    )
}
