import asyncio
import dataclasses
from pathlib import Path

import pytest

from sanic_nats_bridge.metrics.aggregator import MetricsAggregator
from sanic_nats_bridge.metrics.definitions import Readings
from sanic_nats_bridge.metrics.stats import Stats
from sanic_nats_bridge.metrics.worker_files import WorkerFiles
from tests.support.bridge import until
from tests.unit.metrics.test_definitions import STATS


class Worker:
    """A worker with stats that the test sets."""

    def __init__(self, name: str, folder: Path | None, messages: int = 0) -> None:
        self.stats = dataclasses.replace(STATS, messages=messages)
        self.aggregator = MetricsAggregator(self._take_stats, "app", name, folder)

    def _take_stats(self) -> Stats:
        return self.stats

    def counts(self, messages: int) -> None:
        self.stats = dataclasses.replace(self.stats, messages=messages)

    async def dies(self) -> None:
        """Stop the worker as by SIGKILL: it writes nothing more, and the kernel releases its lock."""
        assert self.aggregator._writer is not None
        self.aggregator._stopping.set()
        await self.aggregator._writer
        assert self.aggregator._files is not None
        self.aggregator._files.release()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared"


def files_of(folder: Path) -> list[Path]:
    return list(folder.glob("app.*"))


def messages(gathered: dict[str, Readings]) -> dict[str, float]:
    return {worker: found["natsbridge_messages_total"][""] for worker, found in gathered.items()}


async def test_worker_without_folder_reports_only_own_stats(folder: Path) -> None:
    worker = Worker("single", None, 5)
    await worker.aggregator.start()
    assert messages(await worker.aggregator.gather()) == {"single": 5}
    await worker.aggregator.stop()


async def test_each_worker_reports_all_workers_and_own_latest_stats(folder: Path) -> None:
    first, second = Worker("w0", folder, 1), Worker("w1", folder, 2)
    for worker in (first, second):
        await worker.aggregator.start()
    await first.aggregator.gather()
    await second.aggregator.gather()
    first.counts(10)
    assert messages(await first.aggregator.gather()) == {"w0": 10, "w1": 2}
    # After a worker has reported its own count, no other worker reports less, even without a periodic write.
    assert messages(await second.aggregator.gather()) == {"w0": 10, "w1": 2}
    for worker in (first, second):
        await worker.aggregator.stop()


async def test_cancelled_gather_loses_no_stats(folder: Path) -> None:
    worker = Worker("w0", folder)
    await worker.aggregator.start()
    for count in range(1, 50):
        worker.counts(count)
        asked = asyncio.create_task(worker.aggregator.gather())
        for _ in range(count % 5):
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait({asked})
    assert messages(await worker.aggregator.gather()) == {"w0": 49}
    (path,) = files_of(folder)
    written = await asyncio.to_thread(path.read_bytes)
    assert b'"natsbridge_messages_total":{"":49.0}' in written
    await worker.aggregator.stop()


async def test_other_workers_see_new_stats_after_a_second(folder: Path) -> None:
    first, second = Worker("w0", folder), Worker("w1", folder)
    for worker in (first, second):
        await worker.aggregator.start()
    await asyncio.sleep(0.5)
    second.counts(7)
    assert messages(await first.aggregator.gather())["w1"] == 0
    await asyncio.sleep(1.1)
    assert messages(await first.aggregator.gather())["w1"] == 7
    for worker in (first, second):
        await worker.aggregator.stop()


@pytest.mark.parametrize("orderly", [True, False], ids=["stopped", "killed"])
async def test_successor_continues_counters_but_not_gauges_of_worker(folder: Path, orderly: bool) -> None:
    witness, first = Worker("w0", folder), Worker("w1", folder, 100)
    await witness.aggregator.start()
    await first.aggregator.start()
    await first.aggregator.gather()
    if orderly:
        first.counts(101)
        await first.aggregator.stop()
    else:
        await first.dies()
    last = 101 if orderly else 100
    dead = (await witness.aggregator.gather())["w1"]
    assert dead["natsbridge_messages_total"] == {"": last}
    assert "natsbridge_sessions" not in dead
    for starts in range(1, 4):
        successor = Worker("w1", folder, starts)
        await successor.aggregator.start()
        last += starts
        assert messages(await successor.aggregator.gather())["w1"] == last
        found = (await witness.aggregator.gather())["w1"]
        assert found["natsbridge_messages_total"] == {"": last}
        assert found["natsbridge_sessions"] == {"websocket": 2, "sse": 1}
        await successor.dies()
    await witness.aggregator.stop()
    assert len(files_of(folder)) == 2


async def test_unreadable_stats_of_other_worker_are_skipped(folder: Path) -> None:
    worker = Worker("w0", folder, 1)
    await worker.aggregator.start()
    WorkerFiles(folder, "app", "w1").write(b"\xff{")
    gathered = await worker.aggregator.gather()
    assert gathered["w0"]["natsbridge_messages_total"] == {"": 1}
    assert not any(gathered["w1"].values())
    await worker.aggregator.stop()


async def test_unusable_folder_is_logged_once_and_own_stats_are_reported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(folder.write_text, "a file")
    worker = Worker("w0", folder, 3)
    await worker.aggregator.start()
    for _ in range(3):
        assert messages(await worker.aggregator.gather()) == {"w0": 3}
    await until(lambda: "Cannot write the metrics" in caplog.text)
    await worker.aggregator.stop()
    assert caplog.text.count("Cannot write the metrics") == 1


async def test_folder_removed_before_worker_stops_is_not_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker("w0", folder, 3)
    await worker.aggregator.start()
    await worker.aggregator.gather()
    await asyncio.to_thread(folder.rename, folder.with_name("gone"))
    assert messages(await worker.aggregator.gather()) == {"w0": 3}
    await worker.aggregator.stop()
    assert caplog.text == ""


def test_worker_writes_and_stops_in_another_event_loop(folder: Path) -> None:
    worker = Worker("a", folder, messages=1)

    async def run() -> dict[str, float]:
        await worker.aggregator.start()
        # Until the writer waits.
        await until(lambda: files_of(folder))
        found = await asyncio.gather(worker.aggregator.gather(), worker.aggregator.gather())
        await worker.aggregator.stop()
        return messages(found[-1])

    assert [asyncio.run(run()) for _ in range(2)] == [{"a": 1}, {"a": 2}]
