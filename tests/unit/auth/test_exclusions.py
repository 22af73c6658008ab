from collections.abc import Callable, Sequence
from itertools import product

import pytest

from sanic_nats_bridge.auth.exclusions import NO_EXCLUSIONS, DeniedIndex, Exclusions
from sanic_nats_bridge.protocol import subjects
from tests.support.growth import assert_linear

SUBJECTS = [".".join(tokens) for size in range(1, 4) for tokens in product(("a", "b", "", "*"), repeat=size)]
FEW = ["a.*", "b.>", "*.b.*"]
MANY = [*FEW, *(f"a.{number}" for number in range(200))]


@pytest.mark.parametrize("patterns", [FEW, MANY], ids=["few", "many"])
def test_subjects_of_patterns_are_excluded_at_first_and_after_many_messages(patterns: Sequence[str]) -> None:
    excludes = Exclusions(patterns).matcher()
    matches = subjects.matcher(tuple(patterns))
    for _ in range(20):
        for subject in SUBJECTS:
            assert bool(excludes(subject)) == bool(matches(subject)), subject


def test_expression_is_compiled_only_for_few_patterns_after_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, ...]] = []

    def matcher(patterns: tuple[str, ...]) -> Callable[[str], object]:
        compiled.append(patterns)
        return lambda _: None

    monkeypatch.setattr(subjects, "matcher", matcher)
    few, many = Exclusions(FEW).matcher(), Exclusions(MANY).matcher()
    for excludes in (few, many):
        for _ in range(32 * len(FEW) - 1):
            excludes("c")
        assert compiled == []
    for excludes in (few, many):
        for _ in range(64 * len(MANY)):
            excludes("c")
    assert compiled == [tuple(FEW)]


def test_equal_exclusions_of_different_permissions_are_one_key() -> None:
    one, other = DeniedIndex({"a.b", "a.c", "d"}).overlapping("a.>"), DeniedIndex({"a.c", "a.b"}).overlapping("a.*")
    assert one == other == ("a.b", "a.c")
    assert hash(one) == hash(other)
    assert len({one, other, NO_EXCLUSIONS}) == 2


def test_exclusions_of_two_indexes_are_combined() -> None:
    one, other = DeniedIndex({"b", "d"}).overlapping(">"), DeniedIndex({"a.>", "b", "c"}).overlapping(">")
    merged = one.combined(other, in_order=True)
    assert merged == ("a.>", "b", "c", "d")
    assert one.combined(other, in_order=True) is merged
    assert one.combined(other, in_order=False) == ("b", "d", "a.>", "b", "c")
    assert [subject for subject in ("a", "a.x", "b", "c", "d", "e") if merged.matcher()(subject)] == [
        "a.x",
        "b",
        "c",
        "d",
    ]
    assert one.combined(NO_EXCLUSIONS, in_order=True) is one
    assert NO_EXCLUSIONS.combined(other, in_order=False) is other


def test_only_overlapping_patterns_of_an_index_are_excluded() -> None:
    index = DeniedIndex({f"rooms.{number}.>" for number in range(20)})
    few = index.overlapping("rooms.7.a")
    assert few.matcher()("rooms.7.x")
    assert not few.matcher()("rooms.8.x")
    assert few == ("rooms.7.>",)
    assert not index.overlapping("halls.>")
    assert index.first_including("rooms.7.a") == "rooms.7.>"
    assert index.first_including("rooms.*.a") is None


def test_patterns_with_same_exclusions_share_them() -> None:
    index = DeniedIndex({f"rooms.{number}.>" for number in range(20)})
    assert index.overlapping("rooms.*.a") is index.overlapping("rooms.*.b")


def test_different_exclusions_do_not_accumulate() -> None:
    index = DeniedIndex({f"rooms.{number}" for number in range(1_000)})
    for number in range(1_000):
        assert index.overlapping(f"rooms.{number}") == (f"rooms.{number}",)
    assert len(index._remembered) <= 64


def test_check_of_a_subject_takes_linear_time() -> None:
    def make(size: int) -> Callable[[], object]:
        excludes = Exclusions(f"*.{number}.private.>" for number in range(size)).matcher()
        return lambda: [excludes("rooms.x.private.a") for _ in range(3_000)]

    assert_linear(make, 1_000)
