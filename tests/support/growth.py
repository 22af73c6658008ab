"""A check that work grows in proportion to its size, by ratios of CPU time."""

import gc
import time
from collections.abc import Callable

_REPEATS = 7
_ROUNDS = 15
_MOST = 2.5


def assert_linear(make: Callable[[int], Callable[[], object]], n: int) -> None:
    """Check that the work for 2n takes at most 2.5 times the CPU time of that for n.

    Args:
        make: Prepares work of a size, and returns a function that does it.
        n: The size. The work should take milliseconds.
    """
    ratio = 0.0
    for number in range(_ROUNDS):
        # One quiet round is enough, because noise makes no other work linear. In turn with twice the size, because a
        # step in the cost of memory may lie between n and 2n.
        ratio = _ratio(make, n << number % 2)
        if ratio <= _MOST:
            return
    raise AssertionError(f"twice the size takes {ratio:.1f} times as long")


def _ratio(make: Callable[[int], Callable[[], object]], n: int) -> float:
    best = {n: float("inf"), 2 * n: float("inf")}
    for _ in range(_REPEATS):
        for size in best:
            work = make(size)
            # A collection would add the time for all objects of the tests.
            gc.disable()
            try:
                begin = time.process_time()
                work()
                best[size] = min(best[size], time.process_time() - begin)
            finally:
                gc.enable()
    return best[2 * n] / best[n]
