import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.protocol import subjects
from sanic_nats_bridge.protocol.pattern_set import PatternSet
from tests.support.growth import assert_linear

TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda tokens, rest: ".".join([*tokens, *rest]),
    st.lists(TOKENS, min_size=1, max_size=4),
    st.sampled_from([[], [">"]]),
) | st.just(">")
SUBJECTS = st.lists(st.sampled_from(["a", "b", "c", "*", ">", ""]), min_size=1, max_size=5).map(".".join)
EVERY = (1 << 20_000) - 1


@given(st.lists(st.tuples(PATTERNS, st.booleans()), max_size=60), st.lists(PATTERNS), st.lists(SUBJECTS), st.data())
def test_set_agrees_with_comparison_of_each_pattern(
    steps: list[tuple[str, bool]], others: list[str], messages: list[str], data: st.DataObject
) -> None:
    found = PatternSet()
    held: dict[int, str] = {}
    for pattern, then_discard in steps:
        number = found.add(pattern)
        assert number not in held
        held[number] = pattern
        if then_discard:
            gone = data.draw(st.sampled_from(sorted(held)))
            del held[gone]
            found.discard(gone)
    assert len(found) == len(held)
    candidates = data.draw(st.integers(0, 1 << 60))
    for pattern in others:
        overlapping = [number for number, each in held.items() if subjects.overlaps(pattern, each)]
        assert found.overlapping(pattern, EVERY) == len(overlapping)
        assert found.overlapping(pattern, candidates) == sum(candidates >> number & 1 for number in overlapping)
    for subject in messages:
        expected = [number for number, each in held.items() if subjects.matcher((each,))(subject)]
        assert found.matching(subject, EVERY) == sorted(expected)
        assert found.matching(subject, candidates) == sorted(each for each in expected if candidates >> each & 1)


def test_numbers_of_discarded_patterns_are_used_again() -> None:
    patterns = PatternSet()
    for number in range(1000):
        assert patterns.add(f"a.{number}.*") in (0, 1)
        if number:
            patterns.discard(number % 2 ^ 1)


def masked(subject: str, count: int) -> list[str]:
    """Return patterns that differ from the subject in wildcards, and in their last token."""
    tokens = subject.split(".")
    patterns = []
    for mask in range(count):
        single = ["*" if mask >> place & 1 else token for place, token in enumerate(tokens)]
        patterns.append(".".join([*single, "other"]))
    return patterns


def test_search_does_not_follow_all_combinations_of_wildcards() -> None:
    subject = ".".join(f"t{place}" for place in range(14))

    def make(count: int) -> Callable[[], object]:
        patterns = PatternSet()
        for pattern in masked(subject, count):
            patterns.add(pattern)

        def search() -> None:
            for number in range(count // 4):
                assert patterns.matching(f"{subject}.{number}", EVERY) == []
                assert patterns.overlapping(f"{subject}.{number}.>", EVERY) == 0

        return search

    assert_linear(make, 2_000)


def test_changes_do_not_visit_the_other_patterns() -> None:
    def make(count: int) -> Callable[[], object]:
        rng = random.Random(1)
        patterns = PatternSet()
        for number in range(count):
            patterns.add(f"a.{rng.randrange(8)}.*.{number}.>")

        def change() -> None:
            for number in range(count // 20):
                patterns.discard(patterns.add(f"a.{number % 8}.*.x.*"))

        return change

    # A change copies sets of bits, of which a word has 64 patterns.
    assert_linear(make, 10_000, most=3.2)
