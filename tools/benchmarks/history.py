"""The measurements of history: the work of a worker until its clients have caught up with a stream.

What is compared is measured in turns in one run, because the machine and the server change between runs.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from ..harness.processes import Server, busy_ticks, open_files, resident_bytes, settled_bytes
from ..harness.remote import Remote, remote
from .load import Load, Outcome
from .publisher import Publication, Publisher
from .results import Run
from .returning import ReturningClients
from .round_trips import busy_percent, quantile, round_trip
from .scenarios import Case
from .subscribers import Subscribers, single_subject
from .targets import BUCKET, STREAM, RunningTarget

__all__ = ["measure_history", "store"]

_NEW = {"from": "new"}
_BRIDGE = "sanic-nats-bridge"
_BLOCK = 2_000
"""The number of messages that the stream must have stored before more are published."""
_SETTLE_SECONDS = 0.2
_POLL_SECONDS = 0.02
_TIMEOUT_SECONDS = 30.0
_FENCE = single_subject(1, subject="history.fence")
_WARMUP = single_subject(20, subject="history.warmup")


def measure_history(run: Run, case: Case, running: RunningTarget) -> None:
    """Measure a case that has a `Case.history`, and record the metrics and errors of the run."""
    machine = busy_ticks()
    _MEASUREMENTS[case.history](run, case, running)
    run.metrics["busy"] = busy_percent(machine)


class _Fence(NamedTuple):
    """A client that follows a subject of the stream, to find out how far the worker's feed is."""

    load: Remote[Load]
    publisher: Remote[Publisher]

    def wait(self) -> None:
        """Publish a message, and wait for it. It follows all messages that were stored before."""
        self.load.call(Load.start, 0)
        round_trip(Publication(0, 1, 128), self.load, self.publisher)


@contextmanager
def _fence(worker: Server, running: RunningTarget) -> Iterator[_Fence]:
    with (
        remote(Load, worker.port, "bridge-ws-stored", _FENCE, 1) as load,
        remote(Publisher, running.broker.port, _FENCE.subjects) as publisher,
    ):
        load.call(Load.connect, 1)
        yield _Fence(load, publisher)


def store(running: RunningTarget, publisher: Remote[Publisher], publication: Publication, stream: str) -> None:
    """Publish messages, and wait until the stream has all of them."""
    last = _last_sequence(running, stream)
    for first in range(publication.first, publication.end, _BLOCK):
        count = min(_BLOCK, publication.end - first)
        publisher.call(Publisher.publish, Publication(first, count, publication.size))
        last += count
        _wait_until(lambda wanted=last: _last_sequence(running, stream) >= wanted)  # type: ignore[misc]


def _last_sequence(running: RunningTarget, stream: str) -> int:
    accounts = running.monitor("/jsz?accounts=true&streams=true")["account_details"]
    states = {each["name"]: each["state"] for account in accounts for each in account["stream_detail"]}
    return int(states[stream]["last_seq"])


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("The server didn't reach the state that was waited for")
        time.sleep(_POLL_SECONDS)


def _requests(running: RunningTarget) -> int:
    """Return the number of messages that the bridge has published: its requests to JetStream."""
    connections = running.monitor("/connz")["connections"]
    return sum(each["in_msgs"] for each in connections if each.get("name", "").startswith(_BRIDGE))


def _connect(
    worker: Server, clients: Remote[ReturningClients], start: Mapping[str, Any], concurrency: int = 200
) -> float:
    """Connect the clients and wait until they have caught up; return the CPU time of the worker, in seconds."""
    used = worker.cpu_ns
    clients.call(ReturningClients.connect, start, concurrency)
    time.sleep(_SETTLE_SECONDS)
    return (worker.cpu_ns - used) / 1e9


def _disconnect(worker: Server, clients: Remote[ReturningClients], files: int) -> None:
    """Disconnect the clients, and wait until the worker has as few open files as before."""
    clients.call(ReturningClients.disconnect)
    _wait_until(lambda: open_files(worker.pid) <= files)
    time.sleep(_SETTLE_SECONDS)


def _warm_up(worker: Server) -> None:
    """Let the worker execute its code once, and its feed begin."""
    with remote(ReturningClients, worker.port, _WARMUP) as clients:
        _connect(worker, clients, _NEW)
        # Not before, because the connection for streams may not have been there yet.
        files = open_files(worker.pid) - _WARMUP.size
        position = clients.call(ReturningClients.position)
        _disconnect(worker, clients, files)
        _connect(worker, clients, {"after": position})
        _disconnect(worker, clients, files)


def _herd(run: Run, case: Case, running: RunningTarget) -> None:
    """Disconnect all clients, publish, and connect them again."""
    _record_herd(run, [_return(run, case, running, running.server, number) for number in range(case.bursts)])


def _herd_elsewhere(run: Run, case: Case, running: RunningTarget) -> None:
    """Connect all clients again, to a worker that has none of their messages in memory."""
    assert running.other_worker is not None
    _record_herd(run, [_return(run, case, running, running.other_worker, 0)])


def _record_herd(run: Run, pairs: Sequence[tuple[float, float, int]]) -> None:
    run.metrics |= {
        "plain_cpu": statistics.median(plain for plain, _, _ in pairs),
        "resume_cpu": statistics.median(resumed for _, resumed, _ in pairs),
        "extra_cpu": statistics.median(resumed - plain for plain, resumed, _ in pairs),
        "requests": statistics.median(requests for _, _, requests in pairs),
    }


def _return(run: Run, case: Case, running: RunningTarget, worker: Server, number: int) -> tuple[float, float, int]:
    """Return the CPU time of the connects with nothing missed, that of those with messages missed, and its requests."""
    home = running.server
    first = number * case.messages
    with ExitStack() as stack:
        if not number:
            _warm_up(home)
            if worker is not home:
                _warm_up(worker)
        files = open_files(home.pid), open_files(worker.pid)
        clients = stack.enter_context(remote(ReturningClients, home.port, case.subscribers))
        plain = _connect(home, clients, _NEW)
        position = clients.call(ReturningClients.position)
        _disconnect(home, clients, files[0])
        with _fence(home, running) as fence:
            publisher = stack.enter_context(remote(Publisher, running.broker.port, case.subscribers.subjects))
            store(running, publisher, Publication(first, case.messages, case.size), STREAM)
            fence.wait()
        _wait_until(lambda: open_files(home.pid) <= files[0])
        back = clients
        if worker is not home:
            back = stack.enter_context(remote(ReturningClients, worker.port, case.subscribers))
        before = _requests(running)
        resumed = _connect(worker, back, {"after": position})
        requests = _requests(running) - before
        run.errors += back.call(ReturningClients.errors, first, first + case.messages)
        _disconnect(worker, back, files[1])
        if worker is not home:
            plain = _connect(worker, back, _NEW)
    return plain, resumed, requests


def _replay_stored(run: Run, case: Case, running: RunningTarget) -> None:
    """Replay messages that only NATS has."""
    subject = single_subject(1, subject="history.replay.0")
    _warm_up(running.server)
    with (
        remote(Publisher, running.broker.port, subject.subjects) as publisher,
        remote(ReturningClients, running.server.port, subject) as clients,
    ):
        store(running, publisher, Publication(0, case.messages, case.size), STREAM)
        start = {"from": "all"}
        seconds = [_replay(run, case, running, clients, start) for _ in range(case.bursts)]
        run.metrics["message_cpu"] = statistics.median(seconds) / case.messages * 1e6
        _harm(run, case, running, clients, subject, start)


def _replay_window(run: Run, case: Case, running: RunningTarget) -> None:
    """Replay messages of the window that no client has got before."""
    _replay_from_memory(run, case, running, is_first=True)


def _replay_again(run: Run, case: Case, running: RunningTarget) -> None:
    """Replay messages of the window that another client has just got."""
    _replay_from_memory(run, case, running, is_first=False)


def _replay_from_memory(run: Run, case: Case, running: RunningTarget, *, is_first: bool) -> None:
    _warm_up(running.server)
    seconds = []
    with ExitStack() as stack:
        for number in range(case.bursts):
            subject = single_subject(1, subject=f"history.replay.{number}")
            clients = stack.enter_context(remote(ReturningClients, running.server.port, subject))
            publisher = stack.enter_context(remote(Publisher, running.broker.port, subject.subjects))
            files = open_files(running.server.pid)
            _connect(running.server, clients, _NEW)
            start = {"after": clients.call(ReturningClients.position)}
            # The bridge follows the pattern for a while longer.
            _disconnect(running.server, clients, files)
            with _fence(running.server, running) as fence:
                store(running, publisher, Publication(0, case.messages, case.size), STREAM)
                fence.wait()
            if not is_first:
                _replay(run, case, running, clients, start)
            seconds.append(_replay(run, case, running, clients, start))
        run.metrics["message_cpu"] = statistics.median(seconds) / case.messages * 1e6
        _harm(run, case, running, clients, subject, start)


def _replay(
    run: Run, case: Case, running: RunningTarget, clients: Remote[ReturningClients], start: Mapping[str, Any]
) -> float:
    files = open_files(running.server.pid)
    used = _connect(running.server, clients, start)
    run.errors += clients.call(ReturningClients.errors, 0, case.messages)
    _disconnect(running.server, clients, files)
    return used


def _harm(
    run: Run,
    case: Case,
    running: RunningTarget,
    clients: Remote[ReturningClients],
    replayed: Subscribers,
    start: Mapping[str, Any],
) -> None:
    """Measure the latency of live messages without history: alone, and beside replays one after another.

    The replays are in turn from another worker, and from that of the live messages. They cost the machine the same, so
    the ratio of the two is the harm that a replay does to its own worker.
    """
    assert running.other_worker is not None
    count = round(case.rate * case.pause)
    latencies: defaultdict[str, list[int]] = defaultdict(list)
    with (
        remote(Publisher, running.broker.port, case.subscribers.subjects) as publisher,
        remote(Load, running.server.port, "bridge-ws", case.subscribers, case.samples) as load,
        remote(ReturningClients, running.other_worker.port, replayed) as others,
    ):
        load.call(Load.connect, case.concurrency)
        others.call(ReturningClients.repeat, start, 0.1)
        first = 0
        turns = {"p99_alone": None, "p99_elsewhere": others, "p99_beside": clients}
        for metric, replaying in list(turns.items()) * case.bursts:
            load.call(Load.start, first)
            if replaying is not None:
                replaying.begin(ReturningClients.repeat, start, case.pause)
            publication = Publication(first, count, case.size, case.rate)
            round_trip(publication, load, publisher)
            if replaying is not None:
                replaying.result()
            first = publication.end
            outcome: Outcome = load.call(Load.outcome, first)
            run.errors += outcome.errors
            latencies[metric] += outcome.latencies
    quantiles = {metric: quantile(sorted(each), 0.99) for metric, each in latencies.items()}
    run.metrics |= quantiles | {"harm": quantiles["p99_beside"] / quantiles["p99_elsewhere"]}


def _stored(run: Run, case: Case, running: RunningTarget) -> None:
    """Publish to clients with and without history, in turns."""
    _warm_up(running.server)
    cpu: dict[str, list[float]] = {"core": [], "stored": []}
    p50: dict[str, list[float]] = {"core": [], "stored": []}
    with ExitStack() as stack:
        sides = {
            "core": (single_subject(case.subscribers.size), "bridge-ws"),
            "stored": (case.subscribers, "bridge-ws-stored"),
        }
        remotes = {
            name: (
                stack.enter_context(remote(Publisher, running.broker.port, subscribers.subjects)),
                stack.enter_context(remote(Load, running.server.port, protocol, subscribers, case.samples)),
            )
            for name, (subscribers, protocol) in sides.items()
        }
        for _, load in remotes.values():
            load.call(Load.connect, case.concurrency)
        first = 0
        for turn in range(case.bursts + 1):
            publication = Publication(first, case.messages, case.size, case.rate)
            for name in ("core", "stored") if turn % 2 else ("stored", "core"):
                publisher, load = remotes[name]
                load.call(Load.start, first)
                used = running.server.cpu_ns
                round_trip(publication, load, publisher)
                used = running.server.cpu_ns - used
                outcome: Outcome = load.call(Load.outcome, publication.end)
                run.errors += outcome.errors
                # The first turn executes the code once.
                if turn:
                    cpu[name].append(used / case.messages / 1e3)
                    p50[name].append(quantile(sorted(outcome.latencies), 0.50))
            first = publication.end
    pairs = list(zip(cpu["core"], cpu["stored"], strict=True))
    run.metrics |= {
        "core_cpu": statistics.median(cpu["core"]),
        "stored_cpu": statistics.median(cpu["stored"]),
        "added_cpu": statistics.median(stored - core for core, stored in pairs),
        "core_p50": statistics.median(p50["core"]),
        "stored_p50": statistics.median(p50["stored"]),
        "p50_ratio": statistics.median(stored / core for core, stored in zip(p50["core"], p50["stored"], strict=True)),
    }


def _bucket(run: Run, case: Case, running: RunningTarget) -> None:
    """Read the state of a bucket."""
    keys = tuple(f"$KV.history.key.{number}" for number in range(case.messages))
    everything = Subscribers(keys, (tuple(range(case.messages)),), pattern="$KV.history.>")
    _warm_up(running.server)
    with remote(Publisher, running.broker.port, keys) as publisher:
        store(running, publisher, Publication(0, case.messages, case.size), BUCKET)
    with remote(ReturningClients, running.server.port, everything) as clients:
        seconds = [_replay(run, case, running, clients, {"from": "last_per_subject"}) for _ in range(case.bursts)]
    run.metrics["state_cpu"] = statistics.median(seconds)


def _memory(run: Run, case: Case, running: RunningTarget) -> None:
    """Fill the windows, and the encoded messages that clients share."""
    pid = running.server.pid
    _warm_up(running.server)
    with ExitStack() as stack:
        clients = stack.enter_context(remote(ReturningClients, running.server.port, case.subscribers))
        publisher = stack.enter_context(remote(Publisher, running.broker.port, case.subscribers.subjects))
        fence = stack.enter_context(_fence(running.server, running))
        files = open_files(pid)
        _connect(running.server, clients, _NEW)
        _disconnect(running.server, clients, files)
        before = settled_bytes(pid, case.settle)
        store(running, publisher, Publication(0, case.messages, case.size), STREAM)
        fence.wait()
        count = case.settings["max_replay_messages"]
        _connect(running.server, clients, {"from": {"last": count}})
        run.errors += clients.call(ReturningClients.errors, case.messages - count, case.messages)
        _disconnect(running.server, clients, files)
        time.sleep(case.settle)
        growth = resident_bytes(pid) - before
    run.metrics |= {
        "growth": float(growth),
        "buffer_share": growth / case.settings["history_buffer_bytes"],
    }


_MEASUREMENTS: Mapping[str, Callable[[Run, Case, RunningTarget], None]] = {
    "herd": _herd,
    "herd-elsewhere": _herd_elsewhere,
    "replay-stored": _replay_stored,
    "replay-window": _replay_window,
    "replay-again": _replay_again,
    "stored": _stored,
    "bucket": _bucket,
    "memory": _memory,
}
