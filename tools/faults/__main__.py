"""Inject faults, and check the messages of every client: ``python -m tools.faults [FAULT …]``."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..harness.host import machine
from ..harness.output import print_line
from ..harness.processes import PROJECT
from ..harness.tables import machine_table, write_tables
from .catalogue import CATALOGUE
from .fault import Fault
from .report import counts_table, publishes_table, sessions_table, streams_table, times_table
from .results import Results, Run
from .run import run

_DOCS = PROJECT / "docs" / "internals"


def main() -> int:
    """Run the command line.

    Returns:
        1 if a guarantee was broken, or if the checker missed a message that the control run lost; otherwise 0.
    """
    options = _options(sys.argv[1:])
    if options.list:
        for fault in CATALOGUE.values():
            print_line(f"{fault.name:24}{fault.title}")
        return 0
    results = Results(machine())
    for number in range(options.rounds):
        for name in options.faults:
            if number and CATALOGUE[name].once:
                continue
            result = asyncio.run(_run(name, number, settings=options.settings, small=options.small))
            results.runs.append(result)
            print_line(_line(result))
    return _report(results, options.docs)


async def _run(name: str, number: int, **options: Any) -> Run:
    entry = CATALOGUE[name]
    return await (run(entry, number, **options) if isinstance(entry, Fault) else entry.run(number, **options))


def _report(results: Results, docs: Path | None) -> int:
    tables = (
        times_table(results),
        counts_table(results),
        streams_table(results),
        publishes_table(results),
        sessions_table(results),
    )
    for table in tables:
        print_line("\n" + table.as_text())
    if docs is not None:
        write_tables(docs / "reliability.md", (*tables, machine_table(results.machine)))
        (docs / "reliability").mkdir(exist_ok=True)
        results.save(docs / "reliability" / "results.json")
    failed = [run for run in results.runs if run.failures]
    if failed:
        print_line(f"{len(failed)} of {len(results.runs)} runs have failed.")
    return 1 if failed else 0


def _line(run: Run) -> str:
    verdict = run.verdict
    noticed = ", ".join(f"{each:.2f}" for each in run.noticed) or "-"
    after = ", ".join(f"{each:.2f}" for each in run.first_message_after) or "-"
    counts = f"{verdict.delivered} delivered, {verdict.announced} announced, {verdict.broken} broken"
    failed = "".join(f"\n  FAILED: {each}" for each in run.failures)
    return f"{run.fault} #{run.round}: noticed {noticed} s, first message after {after} s, {counts}{failed}"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.faults", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="faults to inject (default: all)")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument("--small", action="store_true", help="very short faults, for a test of this tool itself")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the bridge, as a JSON object")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help="write the report into this folder (default: docs/internals, if all faults are injected in full size)",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.faults) - CATALOGUE.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if not (options.docs or options.faults or options.small or options.settings):
        options.docs = _DOCS
    options.faults = options.faults or list(CATALOGUE)
    return options


if __name__ == "__main__":
    sys.exit(main())
