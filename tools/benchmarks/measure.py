"""One measurement: a case of a scenario, run against one target."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ..harness.processes import busy_ticks, open_files, settled_bytes
from ..harness.remote import Remote, remote
from .history import measure_history
from .load import Load, Outcome
from .posts import Posts, Times
from .publisher import Publication, Publisher
from .publishes import measure_publishes
from .results import Run
from .round_trips import busy_percent, quantile, round_trip
from .scenarios import Case, Scenario
from .targets import RunningTarget, Target

__all__ = ["measure"]

_WARMUP_CLIENTS = 20


def measure(
    scenario: Scenario,
    case: Case,
    target: Target,
    number: int,
    loop: str = "uvloop",
    settings: Mapping[str, Any] | None = None,
) -> Run:
    """Start the target, run the case against it, and stop it.

    Args:
        scenario: The scenario of the case.
        case: The case to run.
        target: The target to measure.
        number: The number of the round.
        loop: The event loop of the Python servers, ``uvloop`` or ``asyncio``.
        settings: Settings of the bridge, which override those of the case.

    Returns:
        The run. Its ``errors`` describe failures.
    """
    run = Run(scenario.name, case.name, target.name, number)
    try:
        with ExitStack() as stack:
            running = stack.enter_context(target.start(loop, {**case.settings, **(settings or {})}))
            if case.command:
                _post(run, case, running)
                return run
            if case.publish:
                measure_publishes(run, case, running, target.protocol)
                return run
            if case.history:
                measure_history(run, case, running)
                return run
            publisher = stack.enter_context(remote(Publisher, running.broker.port, case.subscribers.subjects))
            load = stack.enter_context(
                remote(Load, running.server.port, target.protocol, case.subscribers, case.samples)
            )
            _connect(run, case, running, load)
            if case.messages:
                outcome = _publish(run, case, running, load, publisher)
                _record(run, outcome, may_disorder=scenario.ordered and not target.keeps_order)
    except (RuntimeError, OSError) as error:
        run.errors.append(str(error))
    return run


def _connect(run: Run, case: Case, running: RunningTarget, load: Remote[Load]) -> None:
    pid = running.server.pid
    files_before = [open_files(worker) for worker in running.server.workers]
    load.call(Load.warm_up, _WARMUP_CLIENTS)
    before = settled_bytes(pid, case.settle) if case.memory else 0
    used = running.server.cpu_ns
    run.metrics["connect"] = load.call(Load.connect, case.concurrency)
    run.metrics["connect_cpu"] = (running.server.cpu_ns - used) / case.subscribers.size / 1e3
    clients = [open_files(worker) - files for worker, files in zip(running.server.workers, files_before, strict=True)]
    if clients:
        run.metrics["fullest"] = 100 * max(clients) / sum(clients)
    if case.memory:
        run.metrics["memory"] = (settled_bytes(pid, case.settle) - before) / case.subscribers.size


def _post(run: Run, case: Case, running: RunningTarget) -> None:
    assert running.other_worker is not None
    ports = running.server.port, running.other_worker.port
    with remote(Posts, *ports, case.subscribers.size) as posts:
        posts.call(Posts.warm_up)
        machine = busy_ticks()
        times: Times = posts.call(Posts.measure, case.command, case.messages)
    local, relayed = (statistics.median(each) / 1e6 for each in times)
    run.metrics |= {"local": local, "relayed": relayed, "relay": relayed - local, "busy": busy_percent(machine)}


def _publish(run: Run, case: Case, running: RunningTarget, load: Remote[Load], publisher: Remote[Publisher]) -> Outcome:
    warmup = Publication(0, case.warmup, case.size)
    load.call(Load.start, 0)
    round_trip(warmup, load, publisher)
    load.call(Load.start, warmup.end)
    resident = settled_bytes(running.server.pid, case.settle) if case.memory else 0
    server, broker, machine = running.server.cpu_ns, running.broker.cpu_ns, busy_ticks()
    end, rates = _bursts(case, warmup.end, load, publisher)
    used = running.server.cpu_ns - server, running.broker.cpu_ns - broker
    if case.memory:
        run.metrics["growth"] = float(settled_bytes(running.server.pid, case.settle) - resident)
    deliveries = case.subscribers.deliveries(warmup.end, end)
    run.metrics |= {
        "cpu": used[0] / deliveries / 1e3,
        "broker_cpu": used[1] / deliveries / 1e3,
        "rate": statistics.median(rates),
        "busy": busy_percent(machine),
    }
    outcome: Outcome = load.call(Load.outcome, end)
    return outcome


def _bursts(case: Case, first: int, load: Remote[Load], publisher: Remote[Publisher]) -> tuple[int, Sequence[float]]:
    """Publish all bursts.

    Returns:
        The number after that of the last message, and the deliveries per second of each burst.
    """
    deadline = time.monotonic() + case.burst_seconds
    rates = []
    for index in range(case.bursts):
        if index:
            time.sleep(case.pause)
        publication = Publication(first, case.messages, case.size, case.rate)
        seconds = round_trip(publication, load, publisher)
        rates.append(case.subscribers.deliveries(first, publication.end) / seconds)
        first = publication.end
        if time.monotonic() > deadline:
            break
    return first, rates


def _record(run: Run, outcome: Outcome, *, may_disorder: bool) -> None:
    run.metrics |= {"load": 100 * outcome.cpu_share, "in_order": float(not outcome.out_of_order)}
    run.errors += outcome.errors
    if outcome.out_of_order and not may_disorder:
        run.errors.append(f"{outcome.out_of_order} clients received their messages out of order")
    if outcome.latencies:
        ordered = sorted(outcome.latencies)
        run.metrics |= {
            "p50": quantile(ordered, 0.50),
            "p99": quantile(ordered, 0.99),
            "max": ordered[-1] / 1e6,
        }
