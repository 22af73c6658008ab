import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanic_nats_bridge.streams.window import Record, Window, WindowMemory
from tests.support.growth import assert_linear, memory_of


def record(seq: int, size: int = 0) -> Record:
    return Record(seq, seq * 10, "s", b"", b"x" * size)


def seqs(window: Window, after: int, most: int | None = None) -> list[int]:
    return [each.seq for each in window.after(after, most)]


def smallest() -> int:
    """Return the size of the smallest record in a block of its own."""
    memory = WindowMemory(1_000_000)
    Window(memory, 0).add(record(1))
    return memory.bytes


SMALLEST = smallest()
BLOCK = SMALLEST - record(1).size


def test_records_after_a_sequence() -> None:
    window = Window(WindowMemory(1_000_000), 5)
    for seq in (7, 9, 12):
        window.add(record(seq))
    assert seqs(window, 5) == [7, 9, 12]
    assert seqs(window, 7) == seqs(window, 8) == [9, 12]
    assert seqs(window, 7, 1) == [9]
    assert seqs(window, 12) == []
    assert [window.count_after(seq) for seq in (5, 7, 11, 12, 99)] == [3, 2, 1, 0, 0]
    assert len(window) == 3


def test_oldest_records_of_all_windows_are_removed_first() -> None:
    memory = WindowMemory(3 * SMALLEST)
    first, second = Window(memory, 0), Window(memory, 0)
    first.add(record(1))
    second.add(record(2))
    first.add(record(3))
    second.add(record(4))
    assert (seqs(first, first.floor), first.floor) == ([3], 1)
    assert (seqs(second, second.floor), second.floor) == ([2, 4], 0)
    assert memory.bytes == 3 * SMALLEST


def test_slices_end_at_the_same_records_for_all() -> None:
    memory = WindowMemory(10**9)
    window = Window(memory, 0)
    for seq in range(1, 4_001):
        window.add(record(seq))
    for removed in (0, 2_500):
        memory.max_bytes = memory.bytes - removed * SMALLEST
        memory.make_room()
        memory.max_bytes = 10**9
        for start in (window.floor, window.floor + 3, 3_990, 3_999):
            read: list[int] = []
            while found := window.slice_after(read[-1] if read else start, 10):
                read += [each.seq for each in found]
                assert len(found) <= 10
                assert read[-1] % 10 == 0
            assert read == list(range(start + 1, 4_001))


def test_record_larger_than_the_memory_is_not_kept() -> None:
    memory = WindowMemory(1_000)
    window = Window(memory, 0)
    window.add(record(1))
    window.add(record(2, 1_000))
    assert (len(window), window.floor, memory.bytes) == (0, 2, 0)
    window.add(record(3))
    assert seqs(window, window.floor) == [3]


def test_size_counts_payload_headers_subject_and_overhead() -> None:
    memory = WindowMemory(1_000_000)
    large = Record(1, 1, "s" * 20, b"h" * 30, b"p" * 100)
    Window(memory, 0).add(large)
    assert memory.bytes == SMALLEST + 149 == large.size + BLOCK


def test_closed_window_frees_its_memory() -> None:
    memory = WindowMemory(1_000_000)
    closed, other = Window(memory, 0), Window(memory, 0)
    for seq in range(1, 5_001):
        closed.add(record(seq))
    other.add(record(5_001))
    closed.close()
    assert closed.is_closed
    assert (len(closed), seqs(other, 0), memory.bytes) == (0, [5_001], SMALLEST)
    # Not even the entries are left.
    assert len(memory.order) == 1


def test_entries_of_closed_windows_are_bounded() -> None:
    memory = WindowMemory(1_000_000_000)
    for number in range(5_000):
        window = Window(memory, 0)
        window.add(record(number))
        window.close()
        window.close()
        assert len(memory.order) <= 2_100
    assert memory.bytes == 0


def subject_of(kind: str, seq: int) -> str:
    return {"one": "orders.1", "own": f"orders.{seq}", "long": f"{'x' * 240}.{seq}", "wide": f"{'é' * 120}.{seq}"}[kind]


@pytest.mark.parametrize("kind", ["one", "own", "long", "wide"])
@pytest.mark.parametrize(("payload", "headers"), [(0, 0), (0, 50), (100, 0), (10_000, 0)])
@pytest.mark.parametrize("windows", [1, 300])
def test_memory_of_windows_is_bounded(windows: int, payload: int, headers: int, kind: str) -> None:
    limit = 300_000
    # In mixed order, so that the records of each window are few at a time.
    count = 2 * limit // (SMALLEST + payload)

    def fill() -> tuple[WindowMemory, list[Window]]:
        memory = WindowMemory(limit, limit // 64)
        of_all = [Window(memory, 0) for _ in range(windows)]
        for seq in range(1_000_000, 1_000_000 + count):
            subject = sys.intern(subject_of(kind, seq)) if kind == "one" else subject_of(kind, seq)
            of_all[seq * 7919 % windows].add(
                Record(seq, 1_764_520_000_000 + seq, subject, bytes(headers), bytes(payload))
            )
        return memory, of_all

    empty = memory_of(lambda: [Window(WindowMemory(limit), 0) for _ in range(windows)])
    assert memory_of(fill) - empty < 1.1 * limit


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400)), max_size=200),
    st.integers(2_000, 20_000),
    st.integers(0, 4_000),
)
def test_blocks_remove_few_records_too_early(steps: list[tuple[int, int]], max_bytes: int, span: int) -> None:
    memory = WindowMemory(max_bytes, span)
    windows = [Window(memory, 0) for _ in range(3)]
    added: list[tuple[Window, Record]] = []
    for seq, (number, size) in enumerate(steps, 1):
        window = windows[number]
        added.append((window, record(seq, size)))
        window.add(added[-1][1])
        assert memory.bytes <= max_bytes
        # What every window must still have, because later messages leave room for it and for one block.
        left = max_bytes - span
        for index in range(len(added) - 1, -1, -1):
            left -= added[index][1].size + BLOCK
            if left < 0:
                break
            owner, each = added[index]
            assert each.seq > owner.floor
        for each_window in windows:
            own = [each for owner, each in added if owner is each_window and each.seq > each_window.floor]
            assert list(each_window.after(each_window.floor)) == own
    for window in windows:
        window.close()
    assert memory.bytes == 0


def test_blocks_of_busy_windows_are_few() -> None:
    memory = WindowMemory(1_000 * SMALLEST, 1_000 * SMALLEST // 50)
    windows = [Window(memory, 0), Window(memory, 0)]
    for seq in range(1, 5_001):
        windows[seq % 2].add(record(seq))
        assert len(memory.order) <= 2 * 52
    assert sum(map(len, windows)) > 950


Step = tuple[str, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(0, 2_000)),
        st.tuples(st.just("close"), st.integers(0, 3), st.just(0)),
    ),
    max_size=80,
)


def size_of(kept: list[tuple[Window, Record]]) -> int:
    return sum(each.size + BLOCK for _, each in kept)


@given(STEPS, st.integers(SMALLEST, 8_000))
@pytest.mark.parametrize("spare", [0, 1024])
def test_windows_agree_with_model(spare: int, steps: list[Step], max_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sanic_nats_bridge.streams.window._SPARE", spare)
        check_model(steps, max_bytes)


def check_model(steps: list[Step], max_bytes: int) -> None:
    memory = WindowMemory(max_bytes)
    windows = [Window(memory, 0) for _ in range(4)]
    kept: list[tuple[Window, Record]] = []
    for seq, (kind, number, size) in enumerate(steps, 1):
        window = windows[number]
        if kind == "add":
            window.add(record(seq, size))
            kept.append((window, record(seq, size)))
            while size_of(kept) > max_bytes:
                removed, oldest = kept.pop(0)
                assert removed.floor >= oldest.seq
        else:
            window.close()
            kept = [each for each in kept if each[0] is not window]
            windows[number] = Window(memory, seq)
        assert memory.bytes == size_of(kept) <= max_bytes
        for each in windows:
            own = [one for owner, one in kept if owner is each]
            assert list(each.after(each.floor)) == own
            assert (len(each), each.count_after(each.floor)) == (len(own), len(own))
            assert all(one.seq > each.floor for one in own)
            for start in range(each.floor, seq + 1):
                assert seqs(each, start) == [one.seq for one in own if one.seq > start]
    for window in windows:
        window.close()
    assert memory.bytes == 0
    assert all(each.is_closed for each in memory.order)


def filled(count: int, memory: WindowMemory) -> Window:
    window = Window(memory, 0)
    for seq in range(1, count + 1):
        window.add(record(seq))
    return window


def test_adding_is_linear() -> None:
    def make(n: int) -> Callable[[], object]:
        return lambda: filled(n, WindowMemory(10**12))

    assert_linear(make, 5_000)


def test_removing_is_linear() -> None:
    def make(n: int) -> Callable[[], object]:
        memory = WindowMemory(10**12, n * SMALLEST // 64)
        filled(n, memory)

        def work() -> None:
            memory.max_bytes = 0
            memory.make_room()

        return work

    # More than the caches of a CPU hold: else twice the size may cost four times as much.
    assert_linear(make, 50_000)


def test_adding_to_full_memory_is_linear() -> None:
    def make(n: int) -> Callable[[], object]:
        memory = WindowMemory(n * SMALLEST, n * SMALLEST // 64)
        filled(n, memory)
        return lambda: filled(n, memory)

    assert_linear(make, 5_000)


def test_reading_in_steps_is_linear() -> None:
    def make(n: int) -> Callable[[], object]:
        window = filled(n, WindowMemory(10**12))

        def work() -> None:
            seq = 0
            while found := window.after(seq, 10):
                seq = found[-1].seq
                window.count_after(seq)

        return work

    assert_linear(make, 10_000)


def test_closing_many_windows_is_linear() -> None:
    def make(n: int) -> Callable[[], object]:
        memory = WindowMemory(10**12)
        windows = [filled(3, memory) for _ in range(n)]

        def work() -> None:
            for window in windows:
                window.close()

        return work

    assert_linear(make, 3_000)


def window_from(memory: WindowMemory, first: int, end: int) -> Window:
    """Return a window with these messages."""
    window = Window(memory, first - 1)
    for seq in range(first, end):
        window.add(record(seq))
    return window


@pytest.mark.parametrize("removed", [0, 3])
def test_older_messages_are_added_in_front(removed: int) -> None:
    memory = WindowMemory((10 - removed) * SMALLEST)
    window = window_from(memory, 11, 21)
    memory.max_bytes = 100 * SMALLEST
    window.prepend([record(seq) for seq in range(5, 11 + removed)], 4)
    assert seqs(window, 4) == list(range(5, 21))
    assert (window.floor, memory.bytes, len(memory.order), len(window)) == (4, 16 * SMALLEST, 16, 16)


def test_slices_end_at_the_same_records_after_older_ones_were_added() -> None:
    window = window_from(WindowMemory(10**9), 101, 201)
    ends = [window.slice_after(seq, 8)[-1].seq for seq in range(100, 200)]
    window.prepend([record(seq) for seq in range(50, 101)], 49)
    assert [window.slice_after(seq, 8)[-1].seq for seq in range(100, 200)] == ends


def test_older_messages_that_were_added_are_removed_first() -> None:
    memory = WindowMemory(20 * SMALLEST)
    window = window_from(memory, 11, 21)
    window.prepend([record(seq) for seq in range(1, 11)], 0)
    for seq in range(21, 26):
        window.add(record(seq))
    assert (seqs(window, window.floor), window.floor) == (list(range(6, 26)), 5)


def test_older_messages_need_room() -> None:
    memory = WindowMemory(15 * SMALLEST)
    window = window_from(memory, 11, 21)
    window.prepend([record(seq) for seq in range(1, 11)], 0)
    assert (window.floor, len(window), memory.bytes) == (10, 10, 10 * SMALLEST)


def test_closed_window_takes_no_older_messages() -> None:
    memory = WindowMemory(10**9)
    window = window_from(memory, 11, 21)
    window.close()
    window.prepend([record(10)], 9)
    assert memory.bytes == 0


def test_position_is_known_by_its_message() -> None:
    window = window_from(WindowMemory(10**9), 11, 21)
    assert [window.knows(seq, time) for seq, time in ((15, 150), (15, 149), (10, 100), (21, 210))] == [
        True,
        False,
        False,
        False,
    ]
    window.note_known(10, 100)
    assert window.knows(10, 100)
