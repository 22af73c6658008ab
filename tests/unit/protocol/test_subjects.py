import re
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sanic_nats_bridge.errors import InvalidSubject
from sanic_nats_bridge.protocol import subjects

LONGEST = "a" * 255
MOST_TOKENS = ".".join("a" * 32)

VALID = {
    "one token": "a",
    "several tokens": "orders.eu.42",
    "first printable": "!",
    "last printable": "~",
    "punctuation": "a-b_c,d/e=f?g<h.+-",
    "star alone": "*",
    "star in the middle": "a.*.b",
    "stars only": "*.*",
    "rest alone": ">",
    "rest at the end": "a.>",
    "star and rest": "*.>",
    "reserved dollar": "$SYS.>",
    "reserved underscore": "_INBOX.a",
    "255 bytes": LONGEST,
    "32 tokens": MOST_TOKENS,
    "32 tokens with the rest": MOST_TOKENS[:-1] + ">",
}

INVALID = {
    "empty": "",
    "dot alone": ".",
    "empty first token": ".a",
    "empty middle token": "a..b",
    "empty last token": "a.",
    "space": "a b",
    "space around": " a",
    "tab": "a\tb",
    "line end": "a\n",
    "CR LF": "a\r\nPUB b 0\r\n",
    "NUL": "a\0",
    "unit separator": "a\x1f",
    "DEL": "a\x7f",
    "no-break space": "a\xa0",
    "non-ASCII": "größe",
    "line separator": "a\u2028b",
    "astral": "\U0001f600",
    "lone surrogate": "\ud800",
    "fullwidth star": "a.\uff0a",
    "256 bytes": LONGEST + "a",
    "33 tokens": MOST_TOKENS + ".a",
    "33 tokens with the rest": MOST_TOKENS + ".>",
    "star before text": "a.*b",
    "star after text": "a.b*",
    "two stars": "a.**",
    "rest in the middle": "a.>.b",
    "rest first": ">.a",
    "rest twice": ">.>",
    "rest after text": "a.b>",
    "rest and star in one token": "a.*>",
}


def in_grammar(text: str) -> bool:
    """Apply the sentence of the protocol, word for word, without a regular expression."""
    data = text.encode("utf-8", "surrogatepass")
    tokens = text.split(".")
    return (
        1 <= len(data) <= 255
        and all(0x21 <= byte <= 0x7E for byte in data)
        and len(tokens) <= 32
        and all(tokens)
        and all(token == "*" for token in tokens if "*" in token)
        and all(token == ">" for token in tokens if ">" in token)
        and ">" not in tokens[:-1]
    )


def is_accepted(text: str) -> bool:
    try:
        return subjects.validate(text) == text
    except InvalidSubject:
        return False


@pytest.mark.parametrize("pattern", VALID.values(), ids=VALID.keys())
def test_valid_pattern_is_returned_unchanged(pattern: str) -> None:
    assert subjects.validate(pattern) == pattern
    assert in_grammar(pattern)


@pytest.mark.parametrize("pattern", INVALID.values(), ids=INVALID.keys())
def test_invalid_pattern_is_rejected_with_short_printable_message(pattern: str) -> None:
    with pytest.raises(InvalidSubject) as refused:
        subjects.validate(pattern)
    assert refused.value.subjects == (pattern,)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 300
    assert not in_grammar(pattern)


near_misses = st.one_of(
    st.text(),
    st.text("ab.*>$_ \x7f\r\n\0\xe9", max_size=12),
    st.lists(st.sampled_from(["a", "*", ">", "$x", "", "a" * 60]), max_size=36).map(".".join),
)


@given(near_misses)
def test_validation_agrees_with_protocol_grammar(text: str) -> None:
    assert is_accepted(text) == in_grammar(text)


# Brute force is exact here. A token in a wide pattern is contradicted by some other token, and there is
# one in every place; a fixed length, or a least length, of at most three tokens by a subject of four.
TOKENS = ("a", "b", "$x", "_y")
SUBJECTS = [".".join(tokens) for depth in range(1, 5) for tokens in product(TOKENS, repeat=depth)]
PATTERNS = [
    ".".join((*tokens, last))
    for depth in range(3)
    for tokens in product((*TOKENS, "*"), repeat=depth)
    for last in (*TOKENS, "*", ">")
]


def as_regex(pattern: str, *, guarded: bool = True) -> re.Pattern[str]:
    tokens = [{"*": r"[^.]+", ">": r".+"}.get(token, re.escape(token)) for token in pattern.split(".")]
    guard = r"(?![$_])" if guarded and pattern[0] in "*>" else ""
    return re.compile(guard + r"\.".join(tokens))


UNGUARDED = {pattern: frozenset(filter(as_regex(pattern, guarded=False).fullmatch, SUBJECTS)) for pattern in PATTERNS}
MATCHED = {pattern: frozenset(filter(as_regex(pattern).fullmatch, SUBJECTS)) for pattern in PATTERNS}


def test_pattern_matches_same_subjects_as_its_regex() -> None:
    for pattern in PATTERNS:
        assert {subject for subject in SUBJECTS if subjects.matches(pattern, subject)} == MATCHED[pattern], pattern


def test_covers_agrees_with_subset_of_matched_subjects() -> None:
    wrong = [
        (allowed, requested)
        for allowed, requested in product(PATTERNS, repeat=2)
        if subjects.covers(allowed, requested) != (MATCHED[requested] <= MATCHED[allowed])
    ]
    assert not wrong


def test_includes_overlaps_and_matcher_do_not_guard_reserved_tokens() -> None:
    wrong = [
        (one, other)
        for one, other in product(PATTERNS, repeat=2)
        if subjects.includes(one, other) != (UNGUARDED[other] <= UNGUARDED[one])
        or subjects.overlaps(one, other) != bool(UNGUARDED[one] & UNGUARDED[other])
    ]
    assert not wrong
    for pattern in PATTERNS:
        assert set(filter(subjects.matcher((pattern,)), SUBJECTS)) == UNGUARDED[pattern], pattern


def test_encoded_matcher_agrees_with_matches() -> None:
    for pattern in PATTERNS:
        matches = subjects.encoded_matcher(pattern)
        found = {subject for subject in SUBJECTS if matches(subject.encode())}
        assert found == {subject for subject in SUBJECTS if subjects.matches(pattern, subject)}, pattern


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.>", b"a.\xff", True),
        ("a.>", b"a.", False),
        ("a.>", b"a", False),
        ("a.>", b"a.\n", True),
        ("a.*", b"a.\xff\n", True),
        ("a.*", b"a.b.c", False),
        ("a+.>", b"aa.b", False),
        ("*.>", b"a.b.c", True),
        ("*.>", b"_a.b", False),
        ("a.*.>", b"a.b", False),
        ("a", b"a", True),
        ("a", b"ab", False),
    ],
)
def test_encoded_matcher_takes_any_bytes(pattern: str, subject: bytes, expected: bool) -> None:
    assert bool(subjects.encoded_matcher(pattern)(subject)) is expected
    assert subjects.matches_encoded(pattern.encode(), subject) is expected


tokens = st.sampled_from(["a", "ab", "*", ">", "$a", "_", "a+", "", ".", "\n", "\xff"])
patterns = st.builds(
    lambda first, last: ".".join([*first, last]),
    st.lists(st.sampled_from(["a", "ab", "*", "$a", "_", "a+"]), max_size=4),
    st.sampled_from(["a", "*", ">", "$a"]),
)


@given(patterns, st.lists(tokens, max_size=6).map(".".join))
@example("a.>", "a..b")
@example("a.*.>", "a..b")
def test_matches_encoded_agrees_with_encoded_matcher(pattern: str, subject: str) -> None:
    expected = bool(subjects.encoded_matcher(pattern)(subject.encode()))
    assert subjects.matches_encoded(pattern.encode(), subject.encode()) is expected


def test_matcher_matches_union_of_its_patterns() -> None:
    matches = subjects.matcher(("a.*", "b.>", "$x"))
    assert set(filter(matches, SUBJECTS)) == UNGUARDED["a.*"] | UNGUARDED["b.>"] | UNGUARDED["$x"]


@pytest.mark.parametrize("subject", ["a.*", "a.>", "a.", "a.a*", "a.\n", "a.\x85"])
def test_subject_that_resembles_pattern_is_matched_literally(subject: str) -> None:
    assert subjects.matcher(("a.*",))(subject)
    assert subjects.matches("a.*", subject)
    assert not subjects.matcher(("a",))(subject)


@pytest.mark.parametrize("reserved", ["$SYS", "$JS.API", "$KV.b.k", "$O.x", "_INBOX.a.b", "_NATSBRIDGE.x", "$", "_"])
def test_wildcards_do_not_match_reserved_first_token(reserved: str) -> None:
    tokens = reserved.split(".")
    wild = [">", *(".".join(("*", *tokens[1:depth], ">")) for depth in range(1, len(tokens))), "*" + ".*" * len(tokens)]
    wild.append(".".join(["*", *tokens[1:]]))
    assert subjects.is_reserved(reserved)
    for pattern in wild:
        assert not subjects.matches(pattern, reserved), pattern
        assert not subjects.covers(pattern, reserved), pattern
        assert not subjects.covers(pattern, f"{tokens[0]}.>"), pattern
    assert subjects.matches(reserved, reserved)
    assert subjects.covers(f"{tokens[0]}.>", f"{tokens[0]}.*")


@pytest.mark.parametrize("subject", ["a.$SYS", "a._INBOX", "a$", "a_"])
def test_dollar_and_underscore_reserve_only_as_first_character(subject: str) -> None:
    assert not subjects.is_reserved(subject)
    assert subjects.matches(">", subject)
    assert subjects.covers(">", subject)
