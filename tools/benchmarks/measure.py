"""One measurement: a case, done to one contender."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from ..harness.processes import busy_ticks, open_files, settled_bytes
from ..harness.remote import Remote, remote
from .load import Load, Outcome
from .posts import Posts, Times
from .publisher import Publication, Publisher
from .results import Run
from .scenarios import Case, Scene
from .targets import Contender, Standing

__all__ = ["measure"]

_REHEARSAL: Final = 20


def measure(
    scene: Scene,
    case: Case,
    contender: Contender,
    number: int,
    loop: str = "uvloop",
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Start the contender, do the case to it, end it; where something goes wrong, the run says what.

    ``number`` is the round, ``loop`` the event loop of the Python servers, ``uvloop`` or ``asyncio``; ``settings`` are
    the bridge's, beside those of the case.
    """
    run = Run(scene.name, case.name, contender.name, number)
    try:
        with ExitStack() as stack:
            standing = stack.enter_context(contender.start(loop, {**case.settings, **(settings or {})}))
            if case.command:
                _post(run, case, standing)
                return run
            publisher = stack.enter_context(remote(Publisher, standing.broker.port, case.audience.subjects))
            load = stack.enter_context(
                remote(Load, standing.server.port, contender.dialect, case.audience, case.samples)
            )
            _connect(run, case, standing, load)
            if case.messages:
                outcome = _publish(run, case, standing, load, publisher)
                _judge(run, outcome, may_disorder=scene.ordered and not contender.keeps_order)
    except (RuntimeError, OSError) as error:
        run.faults.append(str(error))
    return run


def _connect(run: Run, case: Case, standing: Standing, load: Remote[Load]) -> None:
    pid = standing.server.pid
    empty = [open_files(worker) for worker in standing.server.workers]
    load.call(Load.rehearse, _REHEARSAL)
    before = settled_bytes(pid, case.settle) if case.memory else 0
    used = standing.server.cpu_ns
    run.figures["connect"] = load.call(Load.connect, case.at_once)
    run.figures["connect_cpu"] = (standing.server.cpu_ns - used) / case.audience.size / 1e3
    taken = [open_files(worker) - files for worker, files in zip(standing.server.workers, empty, strict=True)]
    if taken:
        run.figures["fullest"] = 100 * max(taken) / sum(taken)
    if case.memory:
        run.figures["memory"] = (settled_bytes(pid, case.settle) - before) / case.audience.size


def _post(run: Run, case: Case, standing: Standing) -> None:
    assert standing.other is not None
    ports = standing.server.port, standing.other.port
    with remote(Posts, *ports, case.audience.size) as posts:
        posts.call(Posts.rehearse)
        machine = busy_ticks()
        times: Times = posts.call(Posts.measure, case.command, case.messages)
    local, relayed = (statistics.median(each) / 1e6 for each in times)
    run.figures |= {"local": local, "relayed": relayed, "relay": relayed - local, "busy": _busy_percent(machine)}


def _publish(run: Run, case: Case, standing: Standing, load: Remote[Load], publisher: Remote[Publisher]) -> Outcome:
    warmup = Publication(0, case.warmup, case.size)
    load.call(Load.start, 0)
    _round_trip(warmup, load, publisher)
    load.call(Load.start, warmup.end)
    resident = settled_bytes(standing.server.pid, case.settle) if case.memory else 0
    server, broker, machine = standing.server.cpu_ns, standing.broker.cpu_ns, busy_ticks()
    end, rates = _bursts(case, warmup.end, load, publisher)
    used = standing.server.cpu_ns - server, standing.broker.cpu_ns - broker
    if case.memory:
        run.figures["growth"] = float(settled_bytes(standing.server.pid, case.settle) - resident)
    deliveries = case.audience.deliveries(warmup.end, end)
    run.figures |= {
        "cpu": used[0] / deliveries / 1e3,
        "broker_cpu": used[1] / deliveries / 1e3,
        "rate": statistics.median(rates),
        "busy": _busy_percent(machine),
    }
    outcome: Outcome = load.call(Load.outcome, end)
    return outcome


def _bursts(case: Case, first: int, load: Remote[Load], publisher: Remote[Publisher]) -> tuple[int, Sequence[float]]:
    """Publish all bursts; the number after the last message, and each burst's deliveries a second."""
    deadline = time.monotonic() + case.burst_seconds
    rates = []
    for index in range(case.bursts):
        if index:
            time.sleep(case.pause)
        publication = Publication(first, case.messages, case.size, case.rate)
        seconds = _round_trip(publication, load, publisher)
        rates.append(case.audience.deliveries(first, publication.end) / seconds)
        first = publication.end
        if time.monotonic() > deadline:
            break
    return first, rates


def _round_trip(publication: Publication, load: Remote[Load], publisher: Remote[Publisher]) -> float:
    """Publish, and read until all has arrived; the seconds from the first message to the last delivery."""
    load.begin(Load.read, publication.end)
    first: int = publisher.call(Publisher.publish, publication)
    last: int = load.result()
    return (last - first) / 1e9


def _judge(run: Run, outcome: Outcome, *, may_disorder: bool) -> None:
    run.figures |= {"load": 100 * outcome.busy, "in_order": float(not outcome.disordered)}
    run.faults += outcome.faults
    if outcome.disordered and not may_disorder:
        run.faults.append(f"{outcome.disordered} clients got their messages out of order")
    if outcome.latencies:
        ordered = sorted(outcome.latencies)
        run.figures |= {
            "p50": _quantile(ordered, 0.50),
            "p99": _quantile(ordered, 0.99),
            "max": ordered[-1] / 1e6,
        }


def _busy_percent(since: tuple[int, int]) -> float:
    busy, total = (now - then for now, then in zip(busy_ticks(), since, strict=True))
    return 100 * busy / max(total, 1)


def _quantile(ordered: Sequence[int], share: float) -> float:
    """In milliseconds."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1e6
