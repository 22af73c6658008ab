"""The benchmarks measure what they say: counts and order over real servers, never times."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter as Counters
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.bridge import alive
from tools.benchmarks import __main__ as command_line
from tools.benchmarks import load as load_module
from tools.benchmarks.load import Load, Outcome
from tools.benchmarks.measure import measure
from tools.benchmarks.payloads import SMALLEST_BYTES, document
from tools.benchmarks.plots import draw
from tools.benchmarks.posts import Posts
from tools.benchmarks.report import tables
from tools.benchmarks.results import Place, Results, Run, Spread
from tools.benchmarks.sampling import Counter, Sample
from tools.benchmarks.scenarios import SCENES
from tools.benchmarks.subscribers import Audience, drawn_subjects, own_subjects, shared_patterns, single_subject
from tools.benchmarks.targets import CONTENDERS, DEFAULT_CONTENDERS, Contender, taking_part
from tools.benchmarks.thresholds import GOALS, Goal
from tools.harness.processes import cpu_ns, descendants, free_port, server
from tools.harness.remote import Remote, RemoteError, remote

PROJECT = Path(__file__).parents[2]
WAIT_SECONDS = 10

STREAM = b"".join(b"\x81\x7e\x00\x90{%b}\n" % document(number, 1_000 + number, 100) for number in range(3))

ONE = Place("steady", "100/s", "bridge-ws")
OTHER = ONE._replace(contender="nats-ws")


@contextlib.contextmanager
def doctored(numbers: Sequence[int], ready: threading.Event) -> Iterator[int]:
    """A server whose only client gets these messages, when it is ready; the port."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            for answer in (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", b'"subscribed"'):
                connection.recv(65_536)
                connection.sendall(answer)
            ready.wait(WAIT_SECONDS)
            for number in numbers:
                connection.sendall(document(number, time.monotonic_ns(), 128))
            connection.recv(65_536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(WAIT_SECONDS)


def seen_of(numbers: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What the clients say of these messages, where the first four should have come."""
    monkeypatch.setattr(load_module, "_PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(load_module, "raise_file_limit", lambda: None)
    ready = threading.Event()
    with doctored(numbers, ready) as port:
        clients = Load(port, "plain", single_subject(1), samples=1)
        clients.connect(at_once=1)
        clients.start(0)
        ready.set()
        clients.read(4)
        outcome = clients.outcome(4)
        clients.close()
    return outcome


def made_up(**figures: Sequence[float]) -> Results:
    """One round for each pair of values, the first that of `ONE`, the second that of `OTHER`."""
    results = Results({"CPU": "made up"})
    for name, values in figures.items():
        for place, value, number in zip((ONE, OTHER) * len(values), values, range(len(values)), strict=False):
            results.runs.append(Run(*place, round=number // 2, figures={name: value}))
    return results


@pytest.mark.parametrize("name", SCENES)
def test_every_contender_delivers_everything_once_and_in_order(name: str) -> None:
    scene = SCENES[name]
    for case in scene.cases(small=True):
        for contender in taking_part(scene, DEFAULT_CONTENDERS):
            run = measure(scene, case, CONTENDERS[contender], 0)
            assert not run.faults
            assert set(scene.figures) <= run.figures.keys()


def test_a_whole_stream_in_order_has_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = seen_of([0, 1, 2, 3], monkeypatch)
    assert (outcome.faults, outcome.disordered, len(outcome.latencies)) == ([], 0, 4)


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ([0, 1, 3], "1 missing, 0 too many"),
        ([0, 1, 2, 2, 3], "0 missing, 1 too many"),
        ([0, 1, 1, 3], "1 missing, 1 too many"),
        ([], "4 missing, 0 too many"),
    ],
)
def test_a_message_that_is_missing_or_doubled_is_seen(
    numbers: Sequence[int], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen_of(numbers, monkeypatch).faults == [f"client 0: {fault}"]


def test_messages_out_of_order_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = seen_of([0, 2, 1, 3], monkeypatch)
    assert (outcome.faults, outcome.disordered) == ([], 1)


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_stream_is_counted_and_read_wherever_it_is_cut(cut: int) -> None:
    counter, sample = Counter(), Sample()
    for part in (STREAM[:cut], STREAM[cut:]):
        counter.take(bytearray(part + b"~" * 30), len(part))
        sample.take(part, 2_000)
    sample.digest()
    assert (counter.count, sample.numbers, sample.latencies) == (3, [0, 1, 2], [1_000, 999, 998])


def test_a_stream_is_counted_byte_by_byte() -> None:
    counter = Counter()
    assert sum(counter.take(bytearray([byte]), 1) for byte in STREAM) == counter.count == 3


@pytest.mark.parametrize("size", [SMALLEST_BYTES, 64, 65_536])
def test_payloads_have_exactly_their_size(size: int) -> None:
    assert SMALLEST_BYTES <= 64
    assert len(document(12, time.monotonic_ns(), size)) == size


def test_each_pattern_has_as_many_followers() -> None:
    audience = shared_patterns(100, 1_000, 10)
    followed = Counters(index for indexes in audience.follows for index in indexes)
    assert len(followed) == 1_000
    assert set(followed.values()) == {10}


@pytest.mark.parametrize("audience", [own_subjects(7), drawn_subjects(5, 8, 3), shared_patterns(5, 1, 2)])
def test_what_is_expected_adds_up(audience: Audience) -> None:
    clients = range(audience.size)
    expected = [audience.expected(client, 3, 40) for client in clients]
    assert audience.deliveries(3, 40) == sum(map(len, expected))
    published = {number: audience.subjects[number % len(audience.subjects)] for number in range(3, 40)}
    for client in clients:
        assert expected[client] == [number for number in published if published[number] in audience.names(client)]


def test_a_server_that_does_not_start_is_a_fault() -> None:
    contender = Contender("broken", "", "plain", lambda loop, settings: server([sys.executable, "-c", "print('no')"]))  # type: ignore[arg-type, return-value]
    scene = SCENES["connect"]
    run = measure(scene, scene.cases(small=True)[0], contender, 0)
    assert "did not start" in run.faults[0]


def test_settings_reach_the_bridge() -> None:
    scene = SCENES["connect"]
    run = measure(scene, scene.cases(small=True)[0], CONTENDERS["bridge-ws"], 0, settings={"nonsense": 1})
    assert "no setting 'nonsense'" in run.faults[0]


def test_what_a_remote_object_raises_is_raised_here() -> None:
    far: Remote[Any]
    with remote(dict) as far, pytest.raises(RemoteError, match="KeyError"):
        far.call(dict.pop, "missing")


def test_the_cpu_time_of_children_counts() -> None:
    child = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"]
    code = f"import subprocess; subprocess.run({child!r})"
    with server([sys.executable, "-c", code]) as running:
        assert len(descendants(running.pid)) == 2
        assert cpu_ns(running.pid) >= 300_000_000


def test_what_looks_after_the_workers_does_not_count() -> None:
    child = [sys.executable, "-c", "import os\nprint(1, os.getpid(), flush=True)\ninput()"]
    code = f"import subprocess, time\nwhile time.process_time() < 0.3: pass\nsubprocess.run({child!r})"
    with server([sys.executable, "-c", code]) as running:
        assert running.workers == tuple(descendants(running.pid)[1:])
        assert running.cpu_ns <= cpu_ns(running.pid) - 300_000_000


def test_a_command_that_is_refused_at_either_worker_is_seen() -> None:
    # The first subject is asked for where the stream is, the second at the other worker.
    settings = {"deny": ["bench.post.1"], "command_burst": 1_000}
    with CONTENDERS["bridge-sse-2"].start("uvloop", settings) as standing:
        assert standing.other is not None
        with contextlib.closing(Posts(standing.server.port, standing.other.port, streams=1)) as posts:
            with pytest.raises(RuntimeError, match=r"A command was not carried out"):
                posts.measure("subscribe", rounds=1)
            posts.rehearse()
            assert [len(times) for times in posts.measure("unsubscribe", rounds=2)] == [2, 2]


@pytest.mark.parametrize(
    ("number", "scene", "contender"),
    [
        (signal.SIGINT, "steady", "bridge-ws"),
        (signal.SIGKILL, "steady", "bridge-ws"),
        (signal.SIGKILL, "workers", "bridge-ws-2"),
    ],
)
def test_nothing_is_left_running(number: signal.Signals, scene: str, contender: str) -> None:
    command = [sys.executable, "-m", "tools.benchmarks", scene, "--small", "--rounds", "99", "--servers", contender]
    with subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        start_new_session=True,
        # A shell has what it runs in the background ignore SIGINT, the tests and their children too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        until(lambda: len(descendants(process.pid)) >= 5)
        started = descendants(process.pid)
        process.send_signal(number)
        # Python loses a KeyboardInterrupt that meets a destructor or a weak reference's callback.
        again = threading.Timer(WAIT_SECONDS, process.send_signal, [number])
        again.start()
        said = process.stdout.read()
        again.cancel()
    until(lambda: not any(map(alive, started)))
    assert (b"Interrupted" in said) == (number == signal.SIGINT)


def until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_no_port_is_given_twice() -> None:
    assert len({free_port() for _ in range(50)}) == 50


def test_ratios_are_taken_round_by_round() -> None:
    results = made_up(cpu=[1, 2, 6, 4, 10, 10])
    assert results.ratio("cpu", ONE, OTHER) == Spread(1.0, 0.5, 1.5)
    assert results.spread("cpu", ONE) == Spread(6, 1, 10)


@pytest.mark.parametrize(
    ("values", "bound", "reached"),
    [
        ([3, 4], {"at_most": 0.75}, True),
        ([3.1, 4], {"at_most": 0.75}, False),
        ([12, 4], {"at_least": 3.0}, True),
        ([11, 4], {"at_least": 3.0}, False),
        ([1], {"at_most": 1.0}, None),
    ],
)
def test_a_goal_is_reached_missed_or_not_measured(
    values: Sequence[float], bound: dict[str, float], reached: bool | None
) -> None:
    assert Goal("cpu", ONE, OTHER, **bound).reached(made_up(cpu=values)) is reached


def test_every_goal_is_about_something_that_is_measured() -> None:
    for goal in GOALS:
        for place in (goal.place, goal.other or goal.place):
            scene = SCENES[place.scene]
            assert place.case in [case.name for case in scene.cases()]
            assert place.contender in taking_part(scene, DEFAULT_CONTENDERS)
            assert goal.figure in scene.figures


def test_figures_of_failed_runs_and_latencies_of_a_busy_machine_do_not_count() -> None:
    busy = Run(*ONE, round=0, figures={"cpu": 1.0, "p99": 2.0, "busy": 86.0})
    failed = Run(*ONE, round=1, figures={"cpu": 3.0, "p99": 4.0}, faults=["1 missing"])
    bound = Run(*OTHER, round=0, figures={"cpu": 1.0, "p99": 2.0, "load": 86.0})
    results = Results({}, [busy, failed, bound])
    assert results.spread("cpu", ONE) == Spread(1.0, 1.0, 1.0)
    assert results.spread("p99", ONE) is None
    text = tables(results)[0].as_text()
    assert "machine too busy" in text
    assert "FAILED: 100/s, bridge-ws, round 1: 1 missing" in text
    assert "load-bound" in text


@pytest.mark.parametrize(("cores", "shown"), [(2, "fewer than 4 cores"), (4, "123,456")])
def test_deliveries_a_second_of_workers_are_shown_where_there_are_cores(cores: int, shown: str) -> None:
    run = Run("workers", "100/s", "bridge-ws-2", round=0, figures={"rate": 123_456.0})
    assert shown in tables(Results({"cores": cores}, [run]))[0].as_text()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Results of all scenes, made up, as a file."""
    results = Results({"CPU": "made up"})
    for name, scene in SCENES.items():
        for case in scene.cases():
            for place in (Place(name, case.name, contender) for contender in taking_part(scene, DEFAULT_CONTENDERS)):
                for number in range(2):
                    figures = {figure: float(len(place.contender) + number) for figure in scene.figures}
                    results.runs.append(Run(*place, round=number, figures=figures))
    path = tmp_path / "results.json"
    results.save(path)
    return path


def test_tables_and_plots_are_made_from_the_file(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", str(kept), "--plots", str(tmp_path / "plots"), "--markdown", str(tmp_path / "tables.md")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    assert command_line.main() == 0
    markdown = (tmp_path / "tables.md").read_text()
    for name, scene in SCENES.items():
        assert f"{name}: {scene.title}" in capsys.readouterr().out + markdown
        assert ET.parse(tmp_path / "plots" / f"{name}.svg").getroot().tag.endswith("svg")
    assert markdown.count("| reached |") + markdown.count("| missed |") == len(GOALS)


def test_plots_of_the_same_results_are_the_same(kept: Path, tmp_path: Path) -> None:
    results = Results.load(kept)
    results.runs = [run for run in results.runs if run.scene in ("steady", "growth-clients")]
    drawn = [[path.read_bytes() for path in draw(results, tmp_path / name)] for name in ("one", "two")]
    assert drawn[0] == drawn[1]


def test_the_exit_code_tells_of_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "measure", lambda *_: Run(*ONE, round=0, faults=["1 missing"]))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "connect", "--small", "--rounds", "1", "--servers", "bridge-ws"])
    assert command_line.main() == 1
