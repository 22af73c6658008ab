"""The report: a table of all faults, put into docs/internals/reliability.md between its two marks."""

import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ..harness.tables import Table
from .catalogue import CATALOGUE
from .cluster_scenario import Drill
from .fault import Fault
from .results import Results, Run

__all__ = ["counts_table", "machine_table", "put_into", "sessions_table", "times_table"]

_BEGIN: Final = "<!-- measured -->"
_END: Final = "<!-- end -->"
_COUNTS: Final = {
    "delivered": "delivered",
    "announced": "announced as lost",
    "lost": "silently lost",
    "duplicate": "duplicate",
    "disordered": "out of order",
    "forbidden": "not allowed",
    "overstated": "announced, not lost",
}


def times_table(results: Results) -> Table:
    """How long each fault took to be noticed, and to be over."""
    table = Table(
        "Times", ("fault", "what is done", "noticed (s)", "first message after (s)", "clients that recovered")
    )
    for fault, runs in _measured(results):
        if fault.drop:
            continue
        clients = f"{sum(run.recovered for run in runs)} of {sum(run.clients for run in runs)}"
        noticed = _spread([each for run in runs for each in run.noticed])
        back = _spread([each for run in runs for each in run.back])
        table.rows.append((fault.name, fault.title, noticed, back, clients))
    return table


def counts_table(results: Results) -> Table:
    """What became of the messages in all rounds together."""
    table = Table("Messages", ("fault", *_COUNTS.values()))
    for fault, runs in _measured(results):
        sums = (sum(getattr(run.verdict, count) for run in runs) for count in _COUNTS)
        table.rows.append((fault.name, *(f"{number:,}" for number in sums)))
        table.notes += (
            f"FAILED: {fault.name}, round {run.round}: {'; '.join(run.failures)}" for run in runs if run.failures
        )
        if fault.drop:
            table.notes.append(f"{fault.name}: {fault.title}; it lost {sum(run.dropped for run in runs)} copies")
    return table


def sessions_table(results: Results) -> Table:
    """What became of the sessions where they must end, and of the workers that held them."""
    table = Table(
        "Sessions that ended",
        ("fault", "sessions", "until the next (s)", "in the fullest tenth", "until a worker was gone (s)"),
    )
    for fault, runs in _measured(results):
        table.notes += (f"{fault.name}, round {run.round}: {remark}" for run in runs for remark in run.remarks)
        returns = [each for run in runs for each in run.returns]
        if returns:
            fullest = [each * 100 for run in runs for each in run.fullest]
            ends = _spread([each for run in runs for each in run.ends])
            share = f"{statistics.median(fullest):.0f} % ({max(fullest):.0f} %)" if fullest else "-"
            table.rows.append((fault.name, f"{len(returns):,}", _spread(returns), share, ends))
    return table


def machine_table(results: Results) -> Table:
    """On what it was seen."""
    return Table("Machine", ("", ""), [(name, str(fact)) for name, fact in results.machine.items()])


def put_into(document: Path, tables: Iterable[Table]) -> None:
    """Write the tables between the marks of the document; the rest of it stays."""
    text = "\n".join(table.as_markdown() for table in tables)
    between = re.compile(f"(?<={_BEGIN}\n).*(?={_END})", re.DOTALL)
    document.write_text(between.sub(lambda _: f"\n{text}\n", document.read_text()))


def _measured(results: Results) -> Iterable[tuple[Fault | Drill, list[Run]]]:
    return ((fault, runs) for fault in CATALOGUE.values() if (runs := results.of(fault.name)))


def _spread(values: Sequence[float]) -> str:
    """The median, and the worst."""
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({max(values):.2f})"
