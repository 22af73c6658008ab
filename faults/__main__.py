"""The command line: ``python -m faults [FAULT …]`` does harm, and judges what came of it."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine

from .faults import CONTROL, FAULTS
from .report import counts_table, machine_table, put_into, times_table
from .results import Results, Run
from .run import run


def main() -> int:
    """Exit code 1: a promise was broken, or the bridge that loses messages was not caught."""
    options = _options(sys.argv[1:])
    if options.list:
        for fault in _ALL.values():
            _say(f"{fault.name:20}{fault.title}")
        return 0
    results = Results(machine())
    try:
        for number in range(options.rounds):
            for name in options.faults or _ALL:
                done = asyncio.run(run(_ALL[name], number, settings=options.settings, small=options.small))
                results.runs.append(done)
                _say(_line(done))
    except KeyboardInterrupt:
        _say("Interrupted; this is what was seen until then.")
    return _report(results, options)


_ALL = FAULTS | {CONTROL.name: CONTROL}


def _report(results: Results, options: argparse.Namespace) -> int:
    times, counts = times_table(results), counts_table(results)
    for table in (times, counts):
        _say("\n" + table.as_text())
    if options.json:
        results.save(options.json)
    if options.markdown:
        put_into(options.markdown, (times, counts, machine_table(results)))
    failed = [run for run in results.runs if run.failures]
    if failed:
        _say(f"{len(failed)} of {len(results.runs)} runs have failed.")
    return 1 if failed else 0


def _line(run: Run) -> str:
    verdict = run.verdict
    noticed = ", ".join(f"{each:.2f}" for each in run.noticed) or "-"
    back = ", ".join(f"{each:.2f}" for each in run.back) or "-"
    counts = f"{verdict.delivered} delivered, {verdict.announced} announced, {verdict.broken} broken"
    failed = "".join(f"\n  FAILED: {each}" for each in run.failures)
    return f"{run.fault} #{run.round}: noticed {noticed} s, back {back} s, {counts}{failed}"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="what to do (default: everything)")
    parser.add_argument("--list", action="store_true", help="tell what faults there are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="faults that last for moments, to see whether all works")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the bridge, as a JSON object")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables into this document")
    options = parser.parse_args(arguments)
    if unknown := set(options.faults) - _ALL.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    return options


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
