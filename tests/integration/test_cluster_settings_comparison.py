import asyncio
from collections.abc import Coroutine
from typing import Any
from uuid import uuid4

import pytest
from sanic import Request

from sanic_nats_bridge import Permissions
from sanic_nats_bridge.cluster.settings_comparison import SettingsComparison
from sanic_nats_bridge.log_limits import LINES
from sanic_nats_bridge.settings import Settings
from sanic_nats_bridge.testing import NatsServer
from tests.support.bridge import running, until
from tests.support.clock import turns


class Worker:
    """A worker whose announcements reach the others at once."""

    def __init__(self, others: list["Worker"], app: str = "shop", **settings: Any) -> None:
        self.announced = 0
        self._others = others
        others.append(self)
        self.comparison = SettingsComparison(
            Settings.resolve(settings, {}), app=app, prefix="_T", announce=self._announce
        )

    async def _announce(self, payload: bytes) -> Coroutine[Any, Any, None]:
        self.announced += 1
        for other in self._others:
            other.comparison.receive(payload)
        return asyncio.sleep(0)


async def named(request: Request) -> Permissions | None:
    return None


async def other(request: Request) -> Permissions | None:
    return None


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        ({"subscribe": ["a"]}, {"subscribe": ["b"]}, "subscribe"),
        ({"prefix": "/live", "deny": ["x"]}, {}, "deny, prefix"),
        ({"permissions": named}, {"permissions": other}, "permissions"),
        ({"expose_headers": ["A"]}, {}, "expose_headers"),
        ({"streams": {"A": None}}, {}, "streams"),
        ({"streams": {"A": None, "B": None}}, {"streams": {"B": None, "A": None}}, "streams"),
        ({"streams": {"A": None}}, {"streams": {"A": ["a.>"]}}, "streams"),
        ({"streams": {"A": None}, "history": ["a"]}, {"streams": {"A": None}}, "history"),
        ({"resume_window": 0}, {}, "resume_window"),
        ({"publish": ["a"], "request": ["b"]}, {"publish": ["b"]}, "publish, request"),
        ({"identity_header": "X-User", "publish_headers": ["A"]}, {}, "identity_header, publish_headers"),
        ({"app": "shop"}, {"app": "store"}, "app"),
    ],
)
async def test_different_settings_are_logged_once_by_both(
    ours: dict[str, Any], theirs: dict[str, Any], names: str, caplog: pytest.LogCaptureFixture
) -> None:
    workers: list[Worker] = []
    first, second = Worker(workers, **ours), Worker(workers, **theirs)
    for _ in range(3):
        await first.comparison.announce()
        await turns(5)
    assert [record.getMessage().partition(". ")[0] for record in caplog.records] == [
        f"Another worker uses the control prefix '_T' with other values of: {names}"
    ] * 2
    assert all("'control_prefix'" in record.getMessage() for record in caplog.records)
    assert (first.announced, second.announced) == (4, 1)


KEY, OLD = "k" * 32, "o" * 32


@pytest.mark.parametrize(("ours", "theirs"), [([KEY], [OLD]), ([KEY], None), ([KEY, OLD], ["x" * 32])])
async def test_keys_without_a_common_one_are_logged_once_by_both(
    ours: list[str], theirs: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    workers: list[Worker] = []
    first, _ = Worker(workers, control_key=ours), Worker(workers, control_key=theirs)
    for _ in range(3):
        await first.comparison.announce()
        await turns(5)
    assert len(caplog.records) == 2
    assert all("has another 'control_key', or only one" in record.getMessage() for record in caplog.records)
    assert not any(key in caplog.text for key in (KEY, OLD))


async def test_announcement_of_earlier_version_without_keys_is_compared(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker([])
    worker.comparison.receive(b'{"app": "x"}')
    assert not any("'control_key'" in record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"control_key": [KEY]}, {"control_key": [KEY, OLD]}),
        ({"control_key": [KEY, OLD]}, {"control_key": [OLD]}),
        ({"control_key": [KEY, OLD]}, {"control_key": [OLD, KEY]}),
        ({"subscribe": ["a", "b"]}, {"subscribe": {"b", "a"}}),
        ({"servers": "nats://one"}, {"servers": "nats://two", "name": "other", "max_sessions": 5}),
        ({"permissions": named}, {"permissions": named}),
        ({"streams": {"A": ["a", "b"]}}, {"streams": '{"A": ["b", "a"]}'}),
        ({"streams": {"A": None}, "jetstream_domain": "hub", "max_replays": 1}, {"streams": {"A": None}}),
    ],
)
async def test_settings_that_may_differ_are_not_logged(
    ours: dict[str, Any], theirs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    workers: list[Worker] = []
    first, second = Worker(workers, **ours), Worker(workers, **theirs)
    await first.comparison.announce()
    await second.comparison.announce()
    await turns(5)
    assert not caplog.records


async def test_invalid_announcements_are_ignored_and_logs_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker([])
    for data in (b"", b"[]", b"\xff", b"[" * 100_000, b'{"app": 1}'):
        worker.comparison.receive(data)
    assert not caplog.records
    for number in range(1000):
        worker.comparison.receive(b'{"app": "%d"}' % number)
    assert len(caplog.records) == LINES
    assert len(worker.comparison._known) == 100


async def test_announcement_without_connection_does_nothing() -> None:
    async def fail(payload: bytes) -> Coroutine[Any, Any, None]:
        raise ConnectionError

    settings = Settings.resolve({}, {})
    await SettingsComparison(settings, app="shop", prefix="_T", announce=fail).announce()


async def test_apps_of_one_control_prefix_warn_each_other_over_nats(
    shared_nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = f"_T.{uuid4().hex}"
    async with (
        running(servers=shared_nats.url, control_prefix=prefix, subscribe=["staging.>"]),
        running(servers=shared_nats.url, control_prefix=prefix, subscribe=["production.>"]),
    ):
        await until(lambda: caplog.text.count(f"Another worker uses the control prefix '{prefix}'") == 2)
