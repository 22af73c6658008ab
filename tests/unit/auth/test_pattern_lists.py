import pytest

from sanic_nats_bridge.auth.pattern_lists import ClientList, PatternListCache
from sanic_nats_bridge.protocol import subjects


def test_list_is_validated_and_indexed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def is_valid(pattern: str) -> bool:
        checked.append(pattern)
        return True

    monkeypatch.setattr(subjects, "is_valid", is_valid)
    cache = PatternListCache()
    first = cache.get("subscribe", ("a", "b.{user}"), {"user": "1"})
    assert checked == ["a", "b.1"]
    # Equal strings, as an app reads them from a database each time.
    again = cache.get("subscribe", ("".join("a"), "".join(["b.", "{user}"])), {"user": "2"})
    assert again is first
    assert again.allowed is first.allowed
    assert checked == ["a", "b.1"]
    assert again.fill({"user": "2"}) == [(1, "b.2")]
    assert checked == ["a", "b.1", "b.2"]
    assert cache.get("deny", ("a", "b.{user}"), {"user": "1"}) is not first


def test_shared_indexes_have_no_patterns_with_placeholders() -> None:
    patterns = PatternListCache().get("subscribe", ("z", "{user}.x", "a", "{", "}{", "a"), {"user": "1"})
    assert patterns.allowed.patterns == ("z", "a", "{", "}{", "a")
    assert list(patterns.numbers) == [0, 2, 3, 4, 5]
    assert patterns.denied.overlapping(">") == ("a", "z", "{", "}{")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("a", "{user}.x", "b..c", "{other}"), "must be a list of valid patterns, got 'b..c'"),
        (("a", "{other}", "b..c"), "has '{other}', but variables has no 'other'"),
        (("{user}x", "_NATSBRIDGE.>", "b..c"), "must not allow the bridge's own subjects"),
        (("{dollar}x", "_NATSBRIDGE.>"), "has '{dollar}x': a variable must not make its first token reserved"),
    ],
)
def test_first_fault_of_a_list_is_raised_each_time(patterns: tuple[str, ...], message: str) -> None:
    cache = PatternListCache()
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^subscribe {message}"):
            cache.get("subscribe", patterns, {"user": "1", "dollar": "$"})


def test_lists_used_longest_ago_are_forgotten() -> None:
    cache = PatternListCache(100)
    lists = [tuple(f"{name}.{number}" for number in range(14)) for name in "abc"]
    first, second, third = [cache.get("subscribe", patterns, {}) for patterns in lists]
    assert cache.get("subscribe", lists[0], {}) is first
    fourth = cache.get("subscribe", ("d",) * 14, {})
    assert cache.get("subscribe", lists[0], {}) is first
    assert cache.get("subscribe", lists[2], {}) is third
    assert cache.get("subscribe", ("d",) * 14, {}) is fourth
    assert cache.get("subscribe", lists[1], {}) is not second


def test_list_larger_than_the_cache_displaces_no_other() -> None:
    cache = PatternListCache(100)
    small, large = ("a",), tuple(f"b.{number}" for number in range(100))
    kept = cache.get("subscribe", small, {})
    assert cache.get("subscribe", large, {}).patterns == large
    assert cache.get("subscribe", small, {}) is kept


def test_client_has_patterns_of_shared_list_and_its_own() -> None:
    patterns = ("$KV.a", "b.{user}.>", "_C.{user}", ">", "b.1.x")
    listed = ClientList.of("publish", patterns, {"user": "1"})
    assert listed.real_patterns() == ["$KV.a", "b.1.>", "_C.1", ">", "b.1.x"]
    assert listed.reserved_patterns() == ["$KV.a", "_C.1"]
    index = listed.indexed()
    assert [index.first_covering(each) for each in ("b.1.x", "b.2", "_C.1", "$KV.b")] == ["b.1.>", ">", "_C.1", None]


def test_empty_list_covers_nothing() -> None:
    listed = ClientList.of("request", (), {})
    assert listed.real_patterns() == listed.reserved_patterns() == []
    assert listed.indexed().first_covering("a") is None
