from collections import Counter
from itertools import product

import pytest

from sanic_nats_bridge.cluster.signatures import CLOCK_SECONDS, Signatures, fingerprints
from sanic_nats_bridge.protocol.session_ids import new_worker_id

OLD, NEW, OTHER = "o" * 32, "n" * 32, "x" * 32
REPLY = f"_T.reply.{new_worker_id()}"
SUBJECT = f"_T.worker.{new_worker_id()}"


class Clock:
    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    def __init__(self, clock: Clock, *keys: str, stall: float = 0) -> None:
        self.dropped: Counter[str] = Counter()
        self.signatures = Signatures(keys, self.dropped, clock=clock, stall=lambda: stall)

    def send(self, payload: bytes = b"payload") -> tuple[bytes, bytes, bytes]:
        reply = f"{REPLY}.{self.signatures.stamp()}"
        return SUBJECT.encode(), reply.encode(), self.signatures.sign(SUBJECT, reply, payload)

    def accept(self, message: tuple[bytes, bytes, bytes]) -> bytes | None:
        return self.signatures.accept(*message)


@pytest.fixture
def clock() -> Clock:
    return Clock()


KEYS = [(OLD,), (NEW, OLD), (OLD, NEW), (NEW,)]


@pytest.mark.parametrize(("ours", "theirs"), list(product(KEYS, KEYS)))
@pytest.mark.parametrize("payload", [b"", b"p", bytes(32), b"x" * 100_000], ids=len)
def test_message_is_accepted_if_sender_and_receiver_share_a_key(
    ours: tuple[str, ...], theirs: tuple[str, ...], payload: bytes, clock: Clock
) -> None:
    sender, receiver = Worker(clock, *theirs), Worker(clock, *ours)
    if {*ours} & {*theirs}:
        assert receiver.accept(sender.send(payload)) == payload
        assert not receiver.dropped
    else:
        assert receiver.accept(sender.send(payload)) is None
        assert receiver.dropped == {"signature": 1}


def test_without_keys_messages_are_neither_signed_nor_checked(clock: Clock) -> None:
    worker = Worker(clock)
    message = worker.send()
    assert message[2] == b"payload"
    assert worker.accept(message) == worker.accept(message) == b"payload"


def test_worker_with_key_drops_messages_without_signature(clock: Clock) -> None:
    receiver = Worker(clock, NEW)
    assert receiver.accept(Worker(clock).send()) is None
    assert receiver.accept(Worker(clock, OTHER).send()) is None
    assert receiver.dropped == {"signature": 2}


def test_question_with_two_signatures_has_64_bytes(clock: Clock) -> None:
    assert len(Worker(clock, NEW, OLD).send(bytes(32))[2]) == 64


@pytest.mark.parametrize("part", range(3))
def test_each_part_of_a_message_is_signed(part: int, clock: Clock) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW)
    message = sender.send()
    for index in range(len(message[part])):
        changed = list(message)
        changed[part] = message[part][:index] + bytes([message[part][index] ^ 1]) + message[part][index + 1 :]
        subject, reply, body = changed
        assert receiver.signatures.accept(subject, reply, body) is None
    assert receiver.accept(message) == b"payload"


def test_bytes_cannot_move_between_the_parts_of_a_message(clock: Clock) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW)
    subject, reply, body = sender.send()
    assert receiver.signatures.accept(subject + reply, b"", body) is None
    assert receiver.signatures.accept(subject, b"", reply + b"\n" + body) is None


@pytest.mark.parametrize("size", range(33))
def test_short_message_is_dropped(size: int, clock: Clock) -> None:
    assert Worker(clock, NEW, OLD).signatures.accept(b"a", b"b", bytes(size)) is None


@pytest.mark.parametrize(
    ("difference", "accepted"),
    [(0, True), (CLOCK_SECONDS, True), (-CLOCK_SECONDS, True), (CLOCK_SECONDS + 2, False), (-CLOCK_SECONDS - 2, False)],
)
def test_clocks_may_differ_by_30_seconds(
    difference: float, accepted: bool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW)
    message = sender.send()
    clock.now += difference
    assert (receiver.accept(message) is not None) == accepted
    assert receiver.dropped["stale"] == (not accepted)
    assert ("Synchronize the clocks" in caplog.text) == (not accepted)


def test_stalled_worker_accepts_messages_that_waited_for_it(clock: Clock) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW, stall=100)
    message = sender.send()
    clock.now += 100 + CLOCK_SECONDS
    assert receiver.accept(message) == b"payload"
    message = sender.send()
    clock.now += 102 + CLOCK_SECONDS
    assert receiver.accept(message) is None


def test_repeated_message_is_dropped(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW)
    messages = [sender.send() for _ in range(50)]
    # A new connection to NATS may change their order.
    assert [receiver.accept(message) for message in reversed(messages)] == [b"payload"] * 50
    assert [receiver.accept(message) for message in messages] == [None] * 50
    assert receiver.dropped == {"replay": 50}
    assert "was received before" in caplog.text


def test_repeated_message_is_dropped_however_many_came_since(clock: Clock) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW)
    messages = [sender.send() for _ in range(5_000)]
    assert all(receiver.accept(message) for message in messages)
    assert not any(receiver.accept(message) for message in messages)


def test_memory_for_numbers_and_senders_is_bounded(clock: Clock) -> None:
    receiver = Worker(clock, NEW)
    for number in range(12_000):
        reply = f"_T.reply.{number:016}.{int(clock.now)}-{10**18 - 1}"
        body = receiver.signatures.sign(SUBJECT, reply, b"x")
        assert receiver.signatures.accept(SUBJECT.encode(), reply.encode(), body) == b"x"
    senders = receiver.signatures._senders
    assert len(senders) == 10_000
    assert all(numbers._bits.bit_length() <= 1024 for numbers in senders.values())


def test_reply_needs_a_signature_but_no_time(clock: Clock) -> None:
    sender, receiver = Worker(clock, NEW), Worker(clock, NEW)
    subject, reply, body = sender.send()
    clock.now += 3600
    for _ in range(2):
        assert receiver.signatures.accept(subject, reply, body, fresh=False) == b"payload"
    assert receiver.signatures.accept(subject, reply, body[:-1], fresh=False) is None


def test_message_without_stamp_is_dropped(clock: Clock) -> None:
    worker = Worker(clock, NEW)
    for subject in ("a", "_T.all.check.x.1-1", f"_T.all.check.{new_worker_id()}.1", f"{new_worker_id()}.1-x"):
        body = worker.signatures.sign(subject, "", b"")
        assert worker.signatures.accept(subject.encode(), b"", body) is None


def test_fingerprints_show_equal_keys_and_not_the_keys() -> None:
    assert fingerprints([OLD, NEW]) == [*fingerprints([OLD]), *fingerprints([NEW])]
    assert len({*fingerprints([OLD, NEW, OTHER])}) == 3
    assert not any(OLD in shown or OLD.encode().hex() in shown for shown in fingerprints([OLD]))
