from collections.abc import Callable, Iterable
from itertools import product

import pytest

from sanic_nats_bridge.protocol import pattern_index, subjects
from sanic_nats_bridge.protocol.pattern_index import PatternIndex, lowest
from tests.support.growth import assert_linear

TOKENS = ("a", "b", "$x", "*")
PATTERNS = [
    ".".join((*tokens, last))
    for size in range(3)
    for tokens in product(TOKENS, repeat=size)
    for last in (*TOKENS, "_y", ">")
]
# As publishers may send them, with empty tokens and with wildcards that are literal.
SUBJECTS = [".".join(tokens) for size in range(1, 5) for tokens in product(("a", "$x", "", "*", ">"), repeat=size)]


def numbers_of(found: int) -> set[int]:
    return {number for number in range(found.bit_length()) if found >> number & 1}


def related(relation: Callable[[str, str], bool], pattern: str, patterns: Iterable[str] = PATTERNS) -> set[int]:
    return {number for number, each in enumerate(patterns) if relation(each, pattern)}


def matching(subject: str, patterns: Iterable[str]) -> set[int]:
    return {number for number, pattern in enumerate(patterns) if subjects.matcher((pattern,))(subject)}


@pytest.fixture(params=[1024, 20, 1], ids=["sets", "sets and tuples", "tuples"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> PatternIndex:
    monkeypatch.setattr(pattern_index, "_MAX_SETS", request.param)
    return PatternIndex(PATTERNS)


def test_index_agrees_with_relations_of_two_patterns(index: PatternIndex) -> None:
    for pattern in PATTERNS:
        assert numbers_of(index.covering(pattern)) == related(subjects.covers, pattern), pattern
        assert numbers_of(index.including(pattern)) == related(subjects.includes, pattern), pattern
        assert numbers_of(index.overlapping(pattern)) == related(subjects.overlaps, pattern), pattern


def test_index_agrees_with_matcher(index: PatternIndex) -> None:
    matchers = [subjects.matcher((pattern,)) for pattern in PATTERNS]
    for subject in SUBJECTS:
        expected = {number for number, matches in enumerate(matchers) if matches(subject)}
        assert numbers_of(index.matching(subject)) == expected, subject


@pytest.mark.parametrize("patterns", [[], ["a.>"], ["b", "a.*", ">", "a.b"], ["a.b"] * 3])
def test_few_patterns_are_compared_one_by_one(patterns: list[str]) -> None:
    for built in (False, True):
        index = PatternIndex(patterns)
        if built:
            index.matching("a")
        for pattern in PATTERNS:
            assert numbers_of(index.covering(pattern)) == related(subjects.covers, pattern, patterns)
            assert numbers_of(index.including(pattern)) == related(subjects.includes, pattern, patterns)
            assert numbers_of(index.overlapping(pattern)) == related(subjects.overlaps, pattern, patterns)
        for subject in SUBJECTS:
            assert numbers_of(index.matching(subject)) == matching(subject, patterns)


def test_patterns_of_set_are_returned_in_order() -> None:
    index = PatternIndex(["c", "a", "b"])
    assert index.select(0b101) == ("c", "b")
    assert index.select(0) == ()
    assert lowest(0b110) == 1


@pytest.mark.parametrize("token", ["a", "*"])
def test_search_in_patterns_with_all_combinations_of_wildcards_is_short(token: str) -> None:
    """Search lists in which a walk along a literal and a wildcard at each token would visit all nodes of a trie."""

    def make(depth: int) -> Callable[[], object]:
        # Twice as many patterns for each token: 2n is 32 times as many.
        index = PatternIndex(f"{'.'.join(tokens)}.b" for tokens in product("a*", repeat=depth))
        requests = [f"{f'{token}.' * depth}{number}" for number in range(500)]
        return lambda: [(index.covering(each), index.overlapping(each)) for each in requests]

    assert_linear(make, 5)


@pytest.mark.parametrize("pattern", ["rooms.{}.>", "{}.*.a", "rooms.{}.{}", "*.*.{}.>"])
def test_index_is_built_in_linear_time(pattern: str) -> None:
    def make(size: int) -> Callable[[], object]:
        patterns = [pattern.format(number, number % 100) for number in range(size)]
        return lambda: PatternIndex(patterns)

    assert_linear(make, 4_000)


def test_selection_takes_linear_time() -> None:
    def make(size: int) -> Callable[[], object]:
        index = PatternIndex(f"rooms.{number}" for number in range(size))
        everything = index.overlapping(">")
        return lambda: [index.select(everything) for _ in range(20)]

    assert_linear(make, 10_000)


def test_search_takes_linear_time() -> None:
    def make(size: int) -> Callable[[], object]:
        index = PatternIndex(f"rooms.{number}.>" for number in range(size))
        return lambda: [(index.covering(f"rooms.{size - 1}.a"), index.overlapping("rooms.*.b")) for _ in range(300)]

    assert_linear(make, 20_000)
