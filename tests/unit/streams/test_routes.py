"""The patterns of a stream, and which of them match a subject."""

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol.subjects import MAX_SUBJECT_BYTES, matches
from sanic_nats_bridge.streams.followed import Followed
from sanic_nats_bridge.streams.routes import Routes
from sanic_nats_bridge.streams.window import WindowMemory
from tests.support.growth import assert_linear

tokens = st.sampled_from(["a", "b", "*"])
patterns = st.lists(tokens, min_size=1, max_size=3).map(".".join) | st.sampled_from([">", "a.>", "*.>"])
subjects = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(".".join)


def followed(pattern: str) -> Followed:
    return Followed(pattern, WindowMemory(1_000), 0)


@given(st.lists(patterns, unique=True), st.data(), st.lists(subjects))
def test_route_has_the_patterns_that_match(added: list[str], data: st.DataObject, asked: list[str]) -> None:
    routes = Routes()
    held = {pattern: followed(pattern) for pattern in added}
    for each in held.values():
        routes.add(each)
    for subject in asked:
        routes.find(subject.encode())
    for pattern in data.draw(st.lists(st.sampled_from(added), unique=True)) if added else []:
        routes.discard(held.pop(pattern))
    assert len(routes) == len(held)
    assert {each.pattern for each in routes} == set(held)
    for subject in asked:
        text, found = routes.known.get(subject.encode()) or routes.find(subject.encode())
        assert text == subject
        assert {each.pattern for each in found} == {pattern for pattern in held if matches(pattern, subject)}


def test_subject_that_is_not_utf8_has_no_patterns() -> None:
    routes = Routes()
    routes.add(followed(">"))
    assert routes.find(b"a.\xff") == ("", ())


def test_few_subjects_of_bounded_length_are_known() -> None:
    routes = Routes()
    for number in range(10_000):
        routes.find(b"a.%d" % number)
    assert len(routes.known) <= 4096
    routes.find(b"a" * (MAX_SUBJECT_BYTES + 1))
    assert b"a" * (MAX_SUBJECT_BYTES + 1) not in routes.known


def test_changes_do_not_visit_the_other_patterns() -> None:
    def make(count: int) -> Callable[[], object]:
        rng = random.Random(1)
        routes = Routes()
        for number in range(count):
            routes.add(followed(f"a.{rng.randrange(8)}.{number}.>"))

        def change() -> None:
            for number in range(count // 20):
                one = followed(f"b.{number}")
                routes.add(one)
                routes.find(b"b.1")
                routes.discard(one)

        return change

    assert_linear(make, 5_000)
