"""Tests of the benchmarks by counts and order, against real servers. No test checks a time."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter as Counters
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sanic_nats_bridge.streams.positions import decode_position
from tests.support.bridge import alive, wait_until
from tests.support.process import APP_ENVIRONMENT
from tools.benchmarks import __main__ as command_line
from tools.benchmarks import load as load_module
from tools.benchmarks.history import store
from tools.benchmarks.load import Load, Outcome
from tools.benchmarks.measure import measure
from tools.benchmarks.payloads import SMALLEST_BYTES, document
from tools.benchmarks.plots import draw
from tools.benchmarks.posts import Posts
from tools.benchmarks.publisher import Publication, Publisher
from tools.benchmarks.report import tables
from tools.benchmarks.results import Results, Run, RunKey, Spread
from tools.benchmarks.returning import ReturningClients
from tools.benchmarks.sampling import Counter, Sample
from tools.benchmarks.scenarios import SCENARIOS, Scenario
from tools.benchmarks.subscribers import Subscribers, own_subjects, random_subjects, shared_patterns, single_subject
from tools.benchmarks.targets import DEFAULT_TARGETS, TARGETS, Target, applicable_targets
from tools.benchmarks.targets import STREAM as HISTORY_STREAM
from tools.benchmarks.thresholds import THRESHOLDS, Threshold
from tools.harness.processes import cpu_ns, descendants, free_port, server
from tools.harness.remote import Remote, RemoteError, remote

PROJECT = Path(__file__).parents[2]
WAIT_SECONDS = 60
AGAIN_SECONDS = 10

STREAM = b"".join(b"\x81\x7e\x00\x90{%b}\n" % document(number, 1_000 + number, 100) for number in range(3))

ONE = RunKey("steady", "100/s", "bridge-ws")
OTHER = ONE._replace(target="nats-ws")


@pytest.fixture(autouse=True, scope="module")
def app_environment() -> Iterator[None]:
    """Start the servers as the other tests do."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in APP_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@contextlib.contextmanager
def scripted_server(numbers: Sequence[int], ready: threading.Event, sent: threading.Event) -> Iterator[int]:
    """Run a server that sends these messages to its only client once that is ready, and yield the port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            for answer in (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b'"subscribed"'):
                connection.recv(65_536)
                connection.sendall(answer)
            ready.wait(WAIT_SECONDS)
            for number in numbers:
                connection.sendall(document(number, time.monotonic_ns(), 128))
            sent.set()
            connection.recv(65_536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(WAIT_SECONDS)


def outcome_of(numbers: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Return the outcome of these messages for a client that expects the first four."""
    # What is missing is waited for. All else is there before it is read.
    monkeypatch.setattr(load_module, "_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr(load_module, "raise_file_limit", lambda: None)
    ready, sent = threading.Event(), threading.Event()
    with scripted_server(numbers, ready, sent) as port:
        clients = Load(port, "plain", single_subject(1), samples=1)
        clients.connect(concurrency=1)
        clients.start(0)
        ready.set()
        assert sent.wait(WAIT_SECONDS)
        clients.read(4)
        outcome = clients.outcome(4)
        clients.close()
    return outcome


def made_up_results(**metrics: Sequence[float]) -> Results:
    """Return results with one round for each pair of values, the first for `ONE`, the second for `OTHER`."""
    results = Results({"CPU": "made up"})
    for name, values in metrics.items():
        for key, value, number in zip((ONE, OTHER) * len(values), values, range(len(values)), strict=False):
            results.runs.append(Run(*key, round=number // 2, metrics={name: value}))
    return results


def measured_targets(scenario: Scenario) -> Sequence[str]:
    """Return the targets of a scenario: all in ``make test-tools``, else one bridge and, in one scenario, all."""
    targets = applicable_targets(scenario, DEFAULT_TARGETS)
    if "TOOLS_IN_FULL" in os.environ or scenario is SCENARIOS["steady"]:
        return targets
    # The last one has the most workers.
    return [target for target in targets if target.startswith("bridge")][-1:]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_target_delivers_each_message_once_in_order(name: str) -> None:
    scenario = SCENARIOS[name]
    targets = measured_targets(scenario)
    assert targets
    for case in scenario.cases(small=True):
        for target in targets:
            run = measure(scenario, case, TARGETS[target], 0)
            assert not run.errors
            assert set(scenario.metrics) <= run.metrics.keys()


def test_complete_ordered_stream_has_no_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of([0, 1, 2, 3], monkeypatch)
    assert (outcome.errors, outcome.out_of_order, len(outcome.latencies)) == ([], 0, 4)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ([0, 1, 3], "1 missing, 0 too many"),
        ([0, 1, 2, 2, 3], "0 missing, 1 too many"),
        ([0, 1, 1, 3], "1 missing, 1 too many"),
        ([], "4 missing, 0 too many"),
    ],
)
def test_missing_and_duplicate_messages_are_reported(
    numbers: Sequence[int], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome_of(numbers, monkeypatch).errors == [f"client 0: {error}"]


def test_out_of_order_messages_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = outcome_of([0, 2, 1, 3], monkeypatch)
    assert (outcome.errors, outcome.out_of_order) == ([], 1)


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_counter_and_sample_accept_any_chunk_boundary(cut: int) -> None:
    counter, sample = Counter(), Sample()
    for part in (STREAM[:cut], STREAM[cut:]):
        counter.add(bytearray(part + b"~" * 30), len(part))
        sample.add(part, 2_000)
    sample.parse()
    assert (counter.count, sample.numbers, sample.latencies) == (3, [0, 1, 2], [1_000, 999, 998])


def test_counter_counts_stream_fed_byte_by_byte() -> None:
    counter = Counter()
    assert sum(counter.add(bytearray([byte]), 1) for byte in STREAM) == counter.count == 3


@pytest.mark.parametrize("size", [SMALLEST_BYTES, 64, 65_536])
def test_payload_has_requested_size(size: int) -> None:
    assert SMALLEST_BYTES <= 64
    assert len(document(12, time.monotonic_ns(), size)) == size


def test_each_pattern_has_the_same_number_of_subscribers() -> None:
    subscribers = shared_patterns(100, 1_000, 10)
    followed = Counters(index for indexes in subscribers.subscriptions for index in indexes)
    assert len(followed) == 1_000
    assert set(followed.values()) == {10}


@pytest.mark.parametrize("subscribers", [own_subjects(7), random_subjects(5, 8, 3), shared_patterns(5, 1, 2)])
def test_expected_messages_match_subscriptions(subscribers: Subscribers) -> None:
    clients = range(subscribers.size)
    expected = [subscribers.expected(client, 3, 40) for client in clients]
    assert subscribers.deliveries(3, 40) == sum(map(len, expected))
    published = {number: subscribers.subjects[number % len(subscribers.subjects)] for number in range(3, 40)}
    for client in clients:
        assert expected[client] == [
            number for number in published if published[number] in subscribers.subjects_of(client)
        ]


def test_run_reports_server_that_fails_to_start() -> None:
    target = Target("broken", "", "plain", lambda loop, settings: server([sys.executable, "-c", "print('no')"]))  # type: ignore[arg-type, return-value]
    scenario = SCENARIOS["connect"]
    run = measure(scenario, scenario.cases(small=True)[0], target, 0)
    assert "did not start" in run.errors[0]


def test_returning_clients_report_missing_messages() -> None:
    subscribers = single_subject(2, subject="history.test")
    with (
        TARGETS["bridge-ws-streams"].start("uvloop", {}) as running,
        remote(Publisher, running.broker.port, subscribers.subjects) as publisher,
        remote(ReturningClients, running.server.port, subscribers) as clients,
    ):
        store(running, publisher, Publication(0, 4, 128), HISTORY_STREAM)
        clients.call(ReturningClients.connect, {"from": "all"}, 2)
        assert clients.call(ReturningClients.errors, 0, 4) == []
        assert clients.call(ReturningClients.errors, 0, 5) == [
            f"client {client}: 1 missing, 0 too many" for client in range(2)
        ]
        (point,) = (decode_position(clients.call(ReturningClients.position)) or {}).values()
        assert point.seq == 4


def test_command_line_accepts_groups_of_scenarios(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def record(scenario: Scenario, *_: Any) -> Run:
        measured.append(scenario.name)
        return Run(*ONE, round=0)

    monkeypatch.setattr(command_line, "measure", record)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "history", "own", "--small", "--rounds", "1"])
    assert command_line.main() == 0
    assert set(measured) == {name for name in SCENARIOS if name.startswith("history-")} | {"own"}


def test_settings_reach_the_bridge() -> None:
    scenario = SCENARIOS["connect"]
    run = measure(scenario, scenario.cases(small=True)[0], TARGETS["bridge-ws"], 0, settings={"nonsense": 1})
    assert "no setting 'nonsense'" in run.errors[0]


def test_remote_exception_is_raised_in_caller() -> None:
    far: Remote[Any]
    with remote(dict) as far, pytest.raises(RemoteError, match="KeyError"):
        far.call(dict.pop, "missing")


# A child that reads its standard input lives as long as its parent, which holds the other end.
HOLDING = "from subprocess import PIPE, Popen\n"


def test_cpu_time_includes_child_processes() -> None:
    child = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"]
    code = f"{HOLDING}Popen({child!r}, stdin=PIPE).wait()"
    with server([sys.executable, "-c", code]) as running:
        assert len(descendants(running.pid)) == 2
        assert cpu_ns(running.pid) >= 300_000_000


def test_server_cpu_time_excludes_manager_process() -> None:
    child = [sys.executable, "-c", "import os\nprint(1, os.getpid(), flush=True)\ninput()"]
    code = f"{HOLDING}import time\nwhile time.process_time() < 0.3: pass\nPopen({child!r}, stdin=PIPE).wait()"
    with server([sys.executable, "-c", code]) as running:
        assert running.workers == tuple(descendants(running.pid)[1:])
        assert running.cpu_ns <= cpu_ns(running.pid) - 300_000_000


def test_command_rejected_by_either_worker_raises_error() -> None:
    # The first subject goes to the worker that holds the stream, the second to the other one.
    settings = {"deny": ["bench.post.1"], "command_burst": 1_000}
    with TARGETS["bridge-sse-2"].start("uvloop", settings) as running:
        assert running.other_worker is not None
        with contextlib.closing(Posts(running.server.port, running.other_worker.port, streams=1)) as posts:
            with pytest.raises(RuntimeError, match="A command failed"):
                posts.measure("subscribe", rounds=1)
            posts.warm_up()
            assert [len(times) for times in posts.measure("unsubscribe", rounds=2)] == [2, 2]


@pytest.mark.parametrize(
    ("number", "scenario", "target"),
    [
        (signal.SIGINT, "steady", "bridge-ws"),
        (signal.SIGKILL, "steady", "bridge-ws"),
        (signal.SIGKILL, "workers", "bridge-ws-2"),
    ],
)
def test_no_child_process_survives_sigint_or_sigkill(number: signal.Signals, scenario: str, target: str) -> None:
    command = [sys.executable, "-m", "tools.benchmarks", scenario, "--small", "--rounds", "99", "--targets", target]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        start_new_session=True,
        # Processes that a shell runs in the background ignore SIGINT, and so do the tests and their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: len(descendants(process.pid)) >= 5)
        started = descendants(process.pid)
        process.send_signal(number)
        # Python loses a KeyboardInterrupt during a destructor or the callback of a weak reference.
        again = threading.Timer(AGAIN_SECONDS, process.send_signal, [number])
        again.start()
        said = process.stdout.read()
        again.cancel()
    wait_until(lambda: not any(map(alive, started)))
    assert (b"Interrupted" in said) == (number == signal.SIGINT)


def test_free_ports_are_unique() -> None:
    assert len({free_port() for _ in range(50)}) == 50


def test_ratio_is_computed_per_round() -> None:
    results = made_up_results(cpu=[1, 2, 6, 4, 10, 10])
    assert results.ratio("cpu", ONE, OTHER) == Spread(1.0, 0.5, 1.5)
    assert results.spread("cpu", ONE) == Spread(6, 1, 10)


@pytest.mark.parametrize(
    ("values", "bound", "met"),
    [
        ([3, 4], {"at_most": 0.75}, True),
        ([3.1, 4], {"at_most": 0.75}, False),
        ([12, 4], {"at_least": 3.0}, True),
        ([11, 4], {"at_least": 3.0}, False),
        ([1], {"at_most": 1.0}, None),
    ],
)
def test_threshold_is_met_missed_or_unmeasured(
    values: Sequence[float], bound: dict[str, float], met: bool | None
) -> None:
    assert Threshold("cpu", ONE, OTHER, **bound).is_met(made_up_results(cpu=values)) is met


def test_every_threshold_refers_to_measured_metric() -> None:
    for threshold in THRESHOLDS:
        for key in (threshold.key, threshold.base or threshold.key):
            scenario = SCENARIOS[key.scenario]
            assert key.case in [case.name for case in scenario.cases()]
            assert key.target in applicable_targets(scenario, DEFAULT_TARGETS)
            assert threshold.metric in scenario.metrics


def test_failed_runs_and_busy_machine_latencies_are_excluded() -> None:
    busy = Run(*ONE, round=0, metrics={"cpu": 1.0, "p99": 2.0, "busy": 86.0})
    failed = Run(*ONE, round=1, metrics={"cpu": 3.0, "p99": 4.0}, errors=["1 missing"])
    bound = Run(*OTHER, round=0, metrics={"cpu": 1.0, "p99": 2.0, "load": 86.0})
    results = Results({}, [busy, failed, bound])
    assert results.spread("cpu", ONE) == Spread(1.0, 1.0, 1.0)
    assert results.spread("p99", ONE) is None
    text = tables(results)[0].as_text()
    assert "machine too busy" in text
    assert "FAILED: 100/s, bridge-ws, round 1: 1 missing" in text
    assert "load-bound" in text


@pytest.mark.parametrize(("cores", "shown"), [(2, "fewer than 4 cores"), (4, "123,456")])
def test_worker_delivery_rate_requires_four_cores(cores: int, shown: str) -> None:
    run = Run("workers", "100/s", "bridge-ws-2", round=0, metrics={"rate": 123_456.0})
    assert shown in tables(Results({"cores": cores}, [run]))[0].as_text()


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    """Write made-up results of all scenarios, and return the file."""
    results = Results({"CPU": "made up"})
    for name, scenario in SCENARIOS.items():
        for case in scenario.cases():
            for target in applicable_targets(scenario, DEFAULT_TARGETS):
                for number in range(2):
                    metrics = {metric: float(len(target) + number) for metric in scenario.metrics}
                    results.runs.append(Run(name, case.name, target, number, metrics))
    path = tmp_path / "results.json"
    results.save(path)
    return path


def test_report_creates_tables_and_plots_from_results_file(
    results_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "report",
        str(results_file),
        "--plots",
        str(tmp_path / "plots"),
        "--markdown",
        str(tmp_path / "tables.md"),
    ]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command_line.main() == 0
    markdown = (tmp_path / "tables.md").read_text()
    for name, scenario in SCENARIOS.items():
        assert f"{name}: {scenario.title}" in capsys.readouterr().out + markdown
        assert ET.parse(tmp_path / "plots" / f"{name}.svg").getroot().tag.endswith("svg")
    assert markdown.count("| met |") + markdown.count("| missed |") == len(THRESHOLDS)


def test_same_results_produce_identical_plots(results_file: Path, tmp_path: Path) -> None:
    results = Results.load(results_file)
    results.runs = [run for run in results.runs if run.scenario in ("steady", "growth-clients")]
    drawn = [[path.read_bytes() for path in draw(results, tmp_path / name)] for name in ("one", "two")]
    assert drawn[0] == drawn[1]


def test_exit_code_is_1_after_failed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "measure", lambda *_: Run(*ONE, round=0, errors=["1 missing"]))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "connect", "--small", "--rounds", "1", "--targets", "bridge-ws"])
    assert command_line.main() == 1
