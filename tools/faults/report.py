"""The report: tables of all faults."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from ..harness.tables import Table
from .catalogue import CATALOGUE, Entry
from .publishes.fault import PublishFault
from .results import Results, Run
from .streams.fault import StreamFault

__all__ = ["counts_table", "publishes_table", "sessions_table", "streams_table", "times_table"]

_COUNTS = {
    "delivered": "delivered",
    "announced": "announced as lost",
    "lost": "silently lost",
    "duplicate": "duplicate",
    "out_of_order": "out of order",
    "forbidden": "not allowed",
    "overstated": "announced, not lost",
    "false_recovered": "false `recovered`",
    "wrong_ids": "wrong ids",
}

_PUBLISHES = {
    "publishes": "publishes",
    "acknowledged": "acknowledged",
    "stored_once": "of these stored once",
    "forbidden": "not allowed",
    "refused": "refused",
    "unknown": "unknown",
    "repeated": "sent again",
    "dropped": "of these known to the stream",
    "doubled": "stored again",
}


def times_table(results: Results) -> Table:
    """Return a table of the times until each fault was noticed, and until clients had recovered."""
    table = Table(
        "Times", ("fault", "what is done", "noticed (s)", "first message after (s)", "clients that recovered")
    )
    for fault, runs in _measured(results):
        if fault.drop_one_in:
            continue
        clients = f"{sum(run.recovered for run in runs)} of {sum(run.clients for run in runs)}"
        noticed = _median_and_worst([each for run in runs for each in run.noticed])
        after = _median_and_worst([each for run in runs for each in run.first_message_after])
        table.rows.append((fault.name, fault.title, noticed, after, clients))
    return table


def counts_table(results: Results) -> Table:
    """Return a table of the message counts of all rounds together."""
    table = Table("Messages", ("fault", *_COUNTS.values()))
    for fault, runs in _measured(results):
        sums = (sum(getattr(run.verdict, count) for run in runs) for count in _COUNTS)
        table.rows.append((fault.name, *(f"{number:,}" for number in sums)))
        table.notes += (
            f"FAILED: {fault.name}, round {run.round}: {'; '.join(run.failures)}" for run in runs if run.failures
        )
        if fault.drop_one_in:
            table.notes.append(f"{fault.name}: {fault.title}; it lost {sum(run.dropped for run in runs)} copies")
    return table


def sessions_table(results: Results) -> Table:
    """Return a table of the sessions that the faults ended, and of the workers that held them."""
    table = Table(
        "Sessions that ended",
        ("fault", "sessions", "until the next (s)", "in the fullest tenth", "until a worker was gone (s)"),
    )
    for fault, runs in _measured(results):
        table.notes += (f"{fault.name}, round {run.round}: {remark}" for run in runs for remark in run.remarks)
        times = [each for run in runs for each in run.reconnect_times]
        if times:
            fullest = [each * 100 for run in runs for each in run.fullest_tenths]
            shutdowns = _median_and_worst([each for run in runs for each in run.shutdown_times])
            share = f"{statistics.median(fullest):.0f} % ({max(fullest):.0f} %)" if fullest else "-"
            table.rows.append((fault.name, f"{len(times):,}", _median_and_worst(times), share, shutdowns))
    return table


def streams_table(results: Results) -> Table:
    """Return a table of the resumes with an id, and of the gaps and ends that followed."""
    table = Table("Streams", ("fault", "patterns resumed", "gaps", "subscriptions that ended"))
    for fault, runs in _measured(results):
        if isinstance(fault, StreamFault):
            gaps = sum((Counter(run.gaps) for run in runs), Counter[str]())
            told = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(gaps.items())) or "0"
            resumes, ended = (sum(getattr(run, name) for run in runs) for name in ("resumes", "ended"))
            table.rows.append((fault.name, f"{resumes:,}", told, f"{ended:,}"))
    return table


def publishes_table(results: Results) -> Table:
    """Return a table of the publishes with acknowledgement, and of what became of them."""
    table = Table("Publishes", ("fault", *_PUBLISHES.values()))
    for fault, runs in _measured(results):
        if isinstance(fault, PublishFault):
            sums = (sum(run.publishes.get(name, 0) for run in runs) for name in _PUBLISHES)
            table.rows.append((fault.name, *(f"{number:,}" for number in sums)))
    return table


def _measured(results: Results) -> Iterable[tuple[Entry, list[Run]]]:
    return ((fault, runs) for fault in CATALOGUE.values() if (runs := results.of(fault.name)))


def _median_and_worst(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({max(values):.2f})"
