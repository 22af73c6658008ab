import time
from collections.abc import Callable

import pytest

from sanic_nats_bridge.auth.expirations import Expiries
from sanic_nats_bridge.auth.permissions import Permissions
from sanic_nats_bridge.hub.broadcast import Batch
from sanic_nats_bridge.hub.interest import Interest
from sanic_nats_bridge.metrics.counters import Tally
from sanic_nats_bridge.protocol import encoding as wire
from sanic_nats_bridge.protocol.encoding import Form
from tests.support.fakes import FakeSubscriber, ignore


def followers(interest: Interest, *permissions: Permissions, pattern: str | None = None) -> list[FakeSubscriber]:
    """One for each permissions, by the client's name for the pattern."""
    subscribers = []
    for each in permissions:
        grant = each.grant(pattern or interest.pattern)
        assert grant.real == interest.pattern
        interest.add(subscriber := FakeSubscriber(), grant)
        subscribers.append(subscriber)
    return subscribers


def new_batch(expire: Callable[[str], None] = ignore) -> Batch:
    return Batch(Tally(), Expiries(expire))


def shown(subscriber: FakeSubscriber) -> list[str]:
    return [frame["subject"] for frame in subscriber.frames]


def publish(batch: Batch, interest: Interest, *subjects: str) -> None:
    for subject in subjects:
        batch.on_message(interest, subject.encode(), b"", b"1")
    batch.flush()


async def test_what_is_denied_is_left_out_for_those_alone_to_whom_it_is_denied() -> None:
    batch, interest = new_batch(), Interest("a.>")
    free, bound, hidden = followers(
        interest, Permissions([">"]), Permissions([">"], ["a.*.secret"]), Permissions([">"], ["a.x", "*.y.>"])
    )
    publish(batch, interest, "a.x", "a.y.secret", "a.y.z", "a.z")
    assert shown(free) == ["a.x", "a.y.secret", "a.y.z", "a.z"]
    assert shown(bound) == ["a.x", "a.y.z", "a.z"]
    assert shown(hidden) == ["a.z"]


async def test_a_subject_that_looks_like_a_pattern_is_denied_all_the_same() -> None:
    batch, interest = new_batch(), Interest("a.>")
    (bound,) = followers(interest, Permissions([">"], ["a.secret.*", "a.deep.>"]))
    publish(batch, interest, "a.secret.*", "a.secret.>", "a.deep.>", "a.deep.*.>", "a.secret.", "a.deep..", "a.*")
    assert shown(bound) == ["a.*"]


async def test_a_renamed_subject_shows_nothing_of_its_real_name() -> None:
    batch, interest = new_batch(), Interest("tenants.42.>")
    names = Permissions([">"], map={"me.": "tenants.42."})
    (renamed,) = followers(interest, names, pattern="me.>")
    (other,) = followers(interest, Permissions([">"], map={"us.": "tenants.42."}), pattern="us.>")
    (plain,) = followers(interest, Permissions([">"]))
    publish(batch, interest, "tenants.42.a", "tenants.42.tenants.42.b")
    assert [(frame["pattern"], frame["subject"]) for frame in renamed.frames] == [
        ("me.>", "me.a"),
        ("me.>", "me.tenants.42.b"),
    ]
    assert shown(other) == ["us.a", "us.tenants.42.b"]
    assert shown(plain) == ["tenants.42.a", "tenants.42.tenants.42.b"]


async def test_a_literal_pattern_is_renamed_too() -> None:
    batch, interest = new_batch(), Interest("tenants.42.a")
    (renamed,) = followers(interest, Permissions([">"], map={"me.": "tenants.42."}), pattern="me.a")
    publish(batch, interest, "tenants.42.a")
    assert renamed.frames == [{"type": "message", "subject": "me.a", "data": 1}]


async def test_those_who_see_the_same_get_the_same_bytes_and_a_payload_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch, interest = new_batch(), Interest("t.42.>")
    ten = [Permissions([">"], [f"t.42.denied.{number}"]) for number in range(10)]
    audience = [followers(interest, *[permissions] * 3) for permissions in ten]
    renamed = followers(interest, *[Permissions([">"], map={"me.": "t.42."})] * 3, pattern="me.>")
    read: list[bytes] = []
    encode_payload = wire.encode_payload

    def reading(payload: bytes) -> tuple[bytes, bytes]:
        read.append(payload)
        return encode_payload(payload)

    monkeypatch.setattr(wire, "encode_payload", reading)
    batch.on_message(interest, b"t.42.x", b"", b'{"a": 1}')
    batch.flush()
    assert read == [b'{"a": 1}']
    for alike in (*audience, renamed):
        assert len({id(subscriber.writes[0]) for subscriber in alike}) == 1
    # Where nothing was left out there is nothing by which they differ.
    assert len({id(alike[0].writes[0]) for alike in audience}) == 1
    assert shown(renamed[0]) == ["me.x"]


async def test_before_anything_is_written_those_whose_time_is_over_are_ended() -> None:
    ended: list[tuple[str, int]] = []

    def expire(key: str) -> None:
        ended.append((key, len(subscriber.writes)))
        subscriber.keeps_up = False

    expiries = Expiries(expire)
    batch, interest = Batch(Tally(), expiries), Interest("a")
    (subscriber,) = followers(interest, Permissions([">"]))
    expiries.put("session", time.time() + 3600)
    publish(batch, interest, "a")
    assert (ended, len(subscriber.writes)) == ([], 1)
    expiries.put("session", time.time() - 0.001)
    publish(batch, interest, "a")
    publish(batch, interest, "a")
    assert (ended, len(subscriber.writes)) == ([("session", 1)], 1)


async def test_nothing_is_kept_for_an_interest_that_nobody_sees_anything_of() -> None:
    batch, interest = new_batch(), Interest("a.*")
    publish(batch, interest, "a.x")
    (subscriber,) = followers(interest, Permissions([">"], ["a.x"]))
    publish(batch, interest, "a.x")
    assert subscriber.writes == []
    batch.on_message(interest, b"a.x", b"", b"1")
    assert batch._hit == []


@pytest.mark.parametrize("form", Form)
async def test_every_form_shows_the_clients_names(form: Form) -> None:
    batch, interest = new_batch(), Interest("real.>")
    grant = Permissions([">"], map={"own.": "real."}).grant("own.>")
    interest.add(subscriber := FakeSubscriber(form), grant)
    batch.on_message(interest, b"real.x", b"", b"1")
    batch.flush()
    assert b"own.x" in subscriber.writes[0]
    assert b"real" not in subscriber.writes[0]
