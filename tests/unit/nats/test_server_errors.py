import math

import pytest

from sanic_nats_bridge.nats.server_errors import classify_error
from sanic_nats_bridge.nats.subscription_index import SubscriptionIndex, sub_length

PATTERNS = SubscriptionIndex(
    {1: "orders.>", 2: "Orders.>", 3: 'odd."quoted"', 4: "odd.back\\slash", 5: "odd.it's", 12: "orders.>"}.items()
)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("""Permissions Violation for Subscription to "orders.>\"""", [1, 12]),
        ("""Permissions Violation for Subscription to "Orders.>\"""", [2]),
        ("""Permissions Violation for Subscription to "orders.>" (sid "12")""", [12]),
        (r'''Permissions Violation for Subscription to "odd.\"quoted\""''', [3]),
        (r'''Permissions Violation for Subscription to "odd.back\\slash"''', [4]),
        ("""Permissions Violation for Subscription to "odd.it's\"""", [5]),
    ],
)
def test_denial_refuses_subscriptions_it_names(line: str, refused: list[int]) -> None:
    assert classify_error(f"-ERR '{line}'", PATTERNS, unconfirmed=4)[:2] == (refused, True)


@pytest.mark.parametrize(
    "line",
    [
        """Permissions Violation for Subscription to "orders.> jobs\"""",
        """Permissions Violation for Subscription to "orders.>" using queue "jobs\"""",
        """Permissions Violation for Subscription to "orders.>" (sid "7")""",
        """Permissions Violation for Subscription to "never.asked\"""",
        """Permissions Violation for Publish to "orders.>\"""",
    ],
)
def test_denial_of_app_operations_refuses_no_bridge_subscription(line: str) -> None:
    assert classify_error(f"-ERR '{line}'", PATTERNS, unconfirmed=1)[:2] == ([], True)


@pytest.mark.parametrize(
    ("line", "subject"),
    [
        ('Permissions Violation for Publish to "orders.new"', "orders.new"),
        (r'Permissions Violation for Publish to "odd.\"quoted\""', 'odd."quoted"'),
        ('Permissions Violation for Subscription to "never.asked"', ""),
        ("Permissions Violation for Publish to orders.new", ""),
        ("Invalid Subject", ""),
    ],
)
def test_subject_of_denied_publish_is_found(line: str, subject: str) -> None:
    assert classify_error(f"-ERR '{line}'", PATTERNS, unconfirmed=None).denied_publish == subject


@pytest.mark.parametrize(("unconfirmed", "refused"), [(4, [4]), (None, []), (99, [])])
def test_too_many_subscriptions_error_refuses_unconfirmed_one(unconfirmed: int | None, refused: list[int]) -> None:
    assert classify_error("-ERR 'maximum subscriptions exceeded'", PATTERNS, unconfirmed)[:2] == (refused, True)


@pytest.mark.parametrize("words", ["Invalid Subject", "Parser Error", "Unknown Protocol Operation"])
def test_subject_error_refuses_unconfirmed_subscription(words: str) -> None:
    assert classify_error(f"-ERR '{words}'", PATTERNS, unconfirmed=5)[:2] == ([5], False)
    assert classify_error(f"-ERR '{words}'", PATTERNS, unconfirmed=None)[:2] == ([], False)


def test_line_length_error_refuses_all_subscriptions_as_long() -> None:
    patterns = SubscriptionIndex({1: "short", 2: "x" * 20, 3: "y" * 19, 4: "z" * 30, 15: "w" * 19}.items())
    line = "-ERR 'Maximum Control Line Exceeded'"
    assert classify_error(line, patterns, unconfirmed=2)[:3] == ([2, 4, 15], False, len("x" * 20 + " 2"))
    assert classify_error(line, patterns, unconfirmed=None)[:3] == ([], False, math.inf)


@pytest.mark.parametrize(
    "line",
    [
        "-ERR 'User Authentication Expired'",
        "-ERR 'Authorization Violation'",
        "-ERR 'Stale Connection'",
        "-ERR 'Slow Consumer'",
        "-ERR 'what nobody knows'",
        "-ERR",
        "-ERR '\ufffd",
    ],
)
def test_other_errors_refuse_nothing_and_end_connection(line: str) -> None:
    assert classify_error(line, PATTERNS, unconfirmed=1)[:2] == ([], False)


GROUPED = SubscriptionIndex(
    [(1, "orders.> natsbridge.1f.7"), (2, "Orders.>"), (4, "odd"), (12, "orders.> natsbridge.1f.70")]
)


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ('"orders.>" using queue "natsbridge.1f.7"', [1]),
        ('"orders.>" using queue "natsbridge.1f.70" (sid "12")', [12]),
        ('"orders.>" using queue "natsbridge.2e.7"', []),
        ('"orders.>"', []),
        ('"Orders.>"', [2]),
    ],
)
def test_denial_in_queue_group_refuses_the_member(line: str, refused: list[int]) -> None:
    error = f"-ERR 'Permissions Violation for Subscription to {line}'"
    assert classify_error(error, GROUPED, 4)[:2] == (refused, True)


def test_line_length_includes_the_queue_group() -> None:
    patterns = SubscriptionIndex([(1, f"{'x' * 10} q1"), (2, "x" * 20), (3, "x" * 13), (4, "x" * 10)])
    effect = classify_error("-ERR 'maximum control line exceeded'", patterns, 1)
    assert (effect.refused, effect.refused_length) == ([1, 2, 3], sub_length("x" * 13, 1))


@pytest.mark.parametrize(
    ("line", "unconfirmed", "too_long"),
    [
        ("maximum control line exceeded", None, True),
        ("maximum control line exceeded", 4, True),
        ("maximum subscriptions exceeded", 4, False),
        ('Permissions Violation for Publish to "maximum control line"', None, False),
    ],
)
def test_line_that_is_too_long_may_be_that_of_a_message(line: str, unconfirmed: int | None, *, too_long: bool) -> None:
    assert classify_error(f"-ERR '{line}'", PATTERNS, unconfirmed).line_too_long is too_long
