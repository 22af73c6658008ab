"""Checks of the growth of work by ratios of CPU time, and of memory."""

import gc
import time
import tracemalloc
from collections.abc import Callable

_REPEATS = 7
_ROUNDS = 15
_MOST = 2.5


def assert_linear(make: Callable[[int], Callable[[], object]], n: int, most: float = _MOST) -> None:
    """Check that the work for 2n takes at most 2.5 times the CPU time of that for n.

    Args:
        make: Prepares work of a size, and returns a function that does it.
        n: The size. The work should take milliseconds.
        most: Another ratio. Quadratic work has 4.
    """
    ratio = 0.0
    for number in range(_ROUNDS):
        # One quiet round is enough, because noise makes no other work linear. In turn with twice the size, because a
        # step in the cost of memory may lie between n and 2n.
        ratio = _ratio(make, n << number % 2)
        if ratio <= most:
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


def memory_of(make: Callable[[], object]) -> int:
    """Return the bytes that an object takes, and all that is reachable only from it."""
    # Otherwise each collection would visit the objects of all tests.
    gc.freeze()
    tracemalloc.start()
    try:
        kept = make()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        del kept
    finally:
        tracemalloc.stop()
    return size
