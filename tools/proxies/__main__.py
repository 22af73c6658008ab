"""Measure the browser client behind proxies: ``python -m tools.proxies [SET-UP …]``."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..harness.host import machine
from ..harness.output import print_line
from ..harness.processes import PROJECT
from ..harness.tables import machine_table, write_tables
from .catalogue import CATALOGUE
from .measure import Length
from .report import messages_table, quiet_table, setups_table, statuses_table, tabs_table
from .results import Results, SetupResult
from .run import run

_DOCS = PROJECT / "docs" / "internals"


def main() -> int:
    """Run the command line.

    Returns:
        1 if the rule was broken behind a proxy, or a proxy did not start; otherwise 0.
    """
    options = _options(sys.argv[1:])
    if options.list:
        for setup in CATALOGUE.values():
            print_line(f"{setup.name:28}{setup.source:8}{setup.title}")
        return 0
    least, most = (round(seconds * options.rate) for seconds in (options.seconds, options.patience))
    measuring = run(
        [CATALOGUE[name] for name in options.setups],
        Length(least, max(least, most), leave_seconds=options.leave),
        rate=options.rate,
        at_once=options.at_once,
        settings=options.settings,
        on_result=lambda result: print_line(_line(result)),
    )
    return _report(Results(machine(), asyncio.run(measuring)), options.docs)


def _report(results: Results, docs: Path | None) -> int:
    tables = (messages_table(results), quiet_table(results), tabs_table(results))
    for table in tables:
        print_line("\n" + table.as_text())
    if docs is not None:
        more = (statuses_table(results), setups_table(results), machine_table(results.machine))
        write_tables(docs / "proxies.md", (*tables, *more))
        (docs / "proxies").mkdir(exist_ok=True)
        results.save(docs / "proxies" / "results.json")
    failed = [result for result in results.setups if result.failures]
    if failed:
        print_line(f"The rule is broken in {len(failed)} of {len(results.setups)} set-ups.")
    return 1 if failed else 0


def _line(result: SetupResult) -> str:
    failed = "".join(f"\n  BROKEN: {each}" for each in result.failures)
    if result.page:
        return f"{result.setup}: the page doesn't load: {result.page}{failed}"
    got = ", ".join(
        f"{name} " + "/".join(str(each.count) for each in link.received.values()) for name, link in result.links.items()
    )
    return f"{result.setup}: {got}{failed}"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.proxies", description=__doc__)
    parser.add_argument("setups", nargs="*", metavar="SET-UP", help="set-ups to measure (default: all)")
    parser.add_argument("--list", action="store_true", help="list the set-ups")
    parser.add_argument("--source", choices=("own", "debian", "node"), help="only proxies of this origin")
    parser.add_argument("--seconds", type=float, default=80, help="seconds of the busy link (default: 80)")
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait for a good verdict, if more")
    parser.add_argument("--leave", type=float, default=35, help="seconds to watch a closed page (default: 35)")
    parser.add_argument("--rate", type=float, default=5, help="messages per second (default: 5)")
    parser.add_argument("--at-once", type=int, default=10, help="set-ups that are measured at a time (default: 10)")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the bridge, as a JSON object")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help="write the report into this folder (default: docs/internals, if all set-ups are measured in full length)",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.setups) - CATALOGUE.keys():
        parser.error(f"no such set-up: {', '.join(sorted(unknown))}")
    changed = any(getattr(options, name) != parser.get_default(name) for name in ("seconds", "rate", "settings"))
    if not (options.docs or options.setups or options.source or changed):
        options.docs = _DOCS
    options.setups = options.setups or [
        name for name, setup in CATALOGUE.items() if options.source in (None, setup.source)
    ]
    return options


if __name__ == "__main__":
    sys.exit(main())
