import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from sanic_nats_bridge.cluster.control_channel import UnknownWorkerError
from sanic_nats_bridge.cluster.questions import Questions
from sanic_nats_bridge.protocol.session_ids import new_worker_id
from sanic_nats_bridge.testing import NatsServer
from tests.integration.test_cluster_control_channel import Worker, workers
from tests.support.bridge import WAIT_SECONDS, flush, until
from tests.support.clock import HeldClock, held

QUESTION = bytes(32)


class Spy:
    """A client of the NATS account that subscribes to everything, so that NATS reports no worker as absent."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen: list[Msg] = []

    async def note(self, message: Msg) -> None:
        self.seen.append(message)

    def requests(self, worker: str) -> list[bytes]:
        """Return what the worker of this id was sent."""
        return [message.data for message in self.seen if message.subject.endswith(f".worker.{worker}")]


@asynccontextmanager
async def spying(url: str) -> AsyncIterator[Spy]:
    client = await nats.connect(url)
    spy = Spy(client)
    await client.subscribe(">", cb=spy.note)
    await flush(client)
    try:
        yield spy
    finally:
        await client.close()


def questions(worker: Worker) -> Questions:
    return Questions(worker.channel, worker.known)


async def seconds(clock: HeldClock, asked: Coroutine[Any, Any, bytes], *clients: Client | None) -> tuple[object, float]:
    """Return the outcome and the time by the held clock that it took.

    The clock waits for what NATS has for these clients.
    """
    task = asyncio.create_task(asked)
    began = clock.now
    while not task.done():
        for _ in range(2):
            for client in clients:
                if client is not None:
                    await flush(client)
        await clock.forward(0.05)
    return task.exception() or task.result(), clock.now - began


async def test_worker_answers_a_question_that_is_sent_once(nats_server: NatsServer) -> None:
    async with spying(nats_server.url) as spy, workers(nats_server.url) as (one, two), held():
        for _ in range(10):
            assert await questions(one).ask(two.id, QUESTION, WAIT_SECONDS) == b"echo " + QUESTION
        await until(lambda: len(spy.requests(two.id)) >= 11)
        assert spy.requests(two.id) == [b""] + [QUESTION] * 10


@pytest.mark.parametrize("config", ["", "no_header_support: true"], ids=["headers", "no headers"])
async def test_absent_worker_is_unknown_within_a_second(config: str) -> None:
    with NatsServer(config=config) as server:
        async with workers(server.url, 1) as (one,), held() as clock:
            outcome, took = await seconds(clock, questions(one).ask(new_worker_id(), QUESTION, 3600), one.client)
            assert isinstance(outcome, UnknownWorkerError)
            assert took <= 1


async def test_absent_worker_is_unknown_within_a_second_if_a_client_subscribes_to_everything(
    nats_server: NatsServer,
) -> None:
    async with spying(nats_server.url) as spy, workers(nats_server.url, 1) as (one,), held() as clock:
        absent = new_worker_id()
        outcome, took = await seconds(clock, questions(one).ask(absent, QUESTION, 3600), one.client)
        assert isinstance(outcome, UnknownWorkerError)
        assert took <= 1
        await until(lambda: len(spy.requests(absent)) == 2)
        assert not one.channel._pending


async def test_worker_that_was_killed_is_unknown_within_a_second_if_a_client_subscribes_to_everything(
    nats_server: NatsServer,
) -> None:
    async with spying(nats_server.url), workers(nats_server.url) as (one, two):
        assert await questions(one).ask(two.id, QUESTION, WAIT_SECONDS)
        assert two.client is not None
        two.client.abort()
        await two.disconnect()
        async with held() as clock:
            outcome, took = await seconds(clock, questions(one).ask(two.id, QUESTION, 3600), one.client)
        assert isinstance(outcome, UnknownWorkerError)
        assert took <= 1


async def test_slow_worker_is_waited_for_if_nats_reports_absent_ones(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two), held() as clock:
        two.may_answer.clear()
        asked = asyncio.create_task(questions(one).ask(two.id, QUESTION, 3600))
        await until(lambda: two.received)
        await clock.forward(60)
        two.may_answer.set()
        assert await asked == b"echo " + QUESTION


async def test_silent_worker_times_out_if_nats_reports_absent_ones(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two), held() as clock:
        two.may_answer.clear()
        outcome, took = await seconds(clock, questions(one).ask(two.id, QUESTION, 5), one.client)
        assert isinstance(outcome, TimeoutError)
        assert took >= 5


async def test_second_question_is_answered_although_the_first_one_was_lost(nats_server: NatsServer) -> None:
    async with spying(nats_server.url) as spy, workers(nats_server.url) as (one, two):
        assert two.client is not None
        requests = two.channel._subscriptions["worker"]
        assert requests.sid is not None
        two.client.remove_subscription(requests.sid)
        await flush(two.client)
        async with held() as clock:
            asked = asyncio.create_task(questions(one).ask(two.id, QUESTION, 3600))
            await until(lambda: spy.requests(two.id)[-1:] == [QUESTION])
            requests.sid = two.client.add_control_subscription(requests.subject, requests)
            await flush(two.client)
            await clock.forward(0.3)
            assert await asked == b"echo " + QUESTION


async def test_stalled_nats_makes_no_worker_unknown(nats_server: NatsServer) -> None:
    async with spying(nats_server.url), workers(nats_server.url) as (one, two), held() as clock:
        nats_server.pause()
        try:
            outcome, took = await seconds(clock, questions(one).ask(two.id, QUESTION, 5))
        finally:
            nats_server.resume()
        assert isinstance(outcome, TimeoutError)
        assert took >= 5


async def test_cancelled_question_leaves_nothing_behind(nats_server: NatsServer) -> None:
    async with spying(nats_server.url) as spy, workers(nats_server.url) as (one, two), held() as clock:
        two.may_answer.clear()
        asked = asyncio.create_task(questions(one).ask(two.id, QUESTION, 3600))
        await until(lambda: spy.requests(two.id)[-1:] == [QUESTION])
        await clock.forward(0.35)
        asked.cancel()
        await clock.forward_until(asked.done)
        assert not one.channel._pending


async def test_nothing_is_sent_about_worker_that_cannot_exist(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two), held() as clock:
        await clock.forward(3)
        for _ in range(1000):
            one.known.may_exist(new_worker_id(), clock.now)
        assert one.client is not None
        sent = one.client.stats["out_msgs"]
        with pytest.raises(UnknownWorkerError):
            questions(one).check_existence(new_worker_id())
        questions(one).check_existence(two.id)
        assert one.client.stats["out_msgs"] == sent


async def test_workers_know_each_other_in_any_order_of_their_starts(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url, 3) as made:
        await until(lambda: all({*each.known._heard} == {*(other.id for other in made)} - {each.id} for each in made))


async def test_worker_that_stops_is_known_to_have_ended(shared_nats: NatsServer) -> None:
    async with workers(shared_nats.url) as (one, two):
        await two.channel.stop()
        await until(lambda: two.id in one.known._ended)
        with pytest.raises(UnknownWorkerError):
            questions(one).check_existence(two.id)


async def test_existence_cannot_be_checked_while_nats_is_disconnected() -> None:
    with pytest.raises(ConnectionError, match="NATS is disconnected"):
        questions(Worker("_T")).check_existence(new_worker_id())
