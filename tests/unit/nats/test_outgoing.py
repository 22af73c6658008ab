import math

import pytest

from sanic_nats_bridge.nats.outgoing import Outgoing

HEADERS = b"NATS/1.0\r\nA: b\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        ((b"a.b", b"xyz"), b"PUB a.b 3\r\nxyz\r\n"),
        ((b"a.b", b""), b"PUB a.b 0\r\n\r\n"),
        ((b"a", b"x", b"", b"r.1"), b"PUB a r.1 1\r\nx\r\n"),
        ((b"a", b"xy", HEADERS), b"HPUB a 18 20\r\n" + HEADERS + b"xy\r\n"),
        ((b"a", b"", HEADERS, b"r.1"), b"HPUB a r.1 18 18\r\n" + HEADERS + b"\r\n"),
        ((b"a", b"\r\nPUB b 0\r\n\r\n"), b"PUB a 13\r\n\r\nPUB b 0\r\n\r\n\r\n"),
    ],
)
def test_message_is_pub_or_hpub(parts: tuple[bytes, ...], lines: bytes) -> None:
    assert Outgoing().message(*parts) == lines


def test_question_subscribes_to_one_answer_before_the_message() -> None:
    assert Outgoing().question(7, b"a", b"x", b"", b"r.1") == b"SUB r.1 7\r\nUNSUB 7 1\r\nPUB a r.1 1\r\nx\r\n"


def test_length_of_longest_line_is_refused_after_the_server_has_refused_a_line() -> None:
    outgoing = Outgoing()
    assert outgoing.refused_length == math.inf
    for subject, reply in ((b"a.b", b""), (b"a.b", b"r.1"), (b"a", b"")):
        outgoing.message(subject, b"x" * 1000, b"", reply)
    outgoing.line_refused(math.inf)
    assert outgoing.refused_length == 6
    outgoing.question(7, b"a.bcd", b"", b"", b"r.1")
    outgoing.line_refused(math.inf)
    assert outgoing.refused_length == 6


@pytest.mark.parametrize(("sub", "refused"), [(300, math.inf), (200, math.inf), (199, 200)])
def test_longer_sub_is_refused_in_place_of_messages(sub: int, refused: float) -> None:
    outgoing = Outgoing()
    outgoing.message(b"x" * 200, b"")
    outgoing.line_refused(sub)
    assert outgoing.refused_length == refused


def test_connection_without_messages_refuses_none() -> None:
    outgoing = Outgoing()
    outgoing.line_refused(math.inf)
    assert outgoing.refused_length == math.inf
