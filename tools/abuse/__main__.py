"""Attack the bridge, with and without its limits, and measure honest clients: ``python -m tools.abuse [ATTACK …]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..harness.output import print_line
from ..harness.processes import PROJECT
from ..harness.tables import write_tables

# Each process of an attack imports this module, and must be ready soon. So the modules that import the bridge are
# imported by functions.
if TYPE_CHECKING:
    from .results import Results, Run

__all__ = ["main"]

_DOCS = PROJECT / "docs" / "internals"
_SECTION = "abuse"


def main() -> int:
    """Run the command line.

    Returns:
        1 if an attack does harm with limits, or none without them; otherwise 0.
    """
    from ..harness.host import machine
    from .catalogue import CATALOGUE
    from .results import Results
    from .run import run

    options = _options(sys.argv[1:])
    if options.list:
        for attack in CATALOGUE.values():
            print_line(f"{attack.name:20}{attack.means}")
        return 0
    results = Results(machine(), small=options.small)
    for number in range(options.rounds):
        for name in options.attacks:
            result = run(CATALOGUE[name], number, options.seconds, small=options.small)
            results.runs.append(result)
            print_line(_line(result, small=options.small))
    return _report(results, options.docs)


def _report(results: "Results", docs: Path | None) -> int:
    from .report import attacks_table, cost_table, failed_attacks

    tables = cost_table(results), attacks_table(results)
    for table in tables:
        print_line("\n" + table.as_text())
    if docs is not None:
        write_tables(docs / "reliability.md", tables, section=_SECTION)
        (docs / "reliability").mkdir(exist_ok=True)
        results.save(docs / "reliability" / "abuse.json")
    failed = failed_attacks(results)
    if failed:
        print_line(f"The rule is broken by {', '.join(failed)}.")
    return 1 if failed else 0


def _line(run: "Run", *, small: bool) -> str:
    from .catalogue import CATALOGUE
    from .verdict import failures

    attack = CATALOGUE[run.attack]
    values = (
        f"{name} {attack.harm.formatted(attack.harm.of(seen))}"
        for name, seen in (("without limits", run.control), ("with limits", run.bounded))
        if seen is not None and not seen.error
    )
    failed = "".join(f"\n  BROKEN: {each}" for each in failures(attack, [run], small=small))
    return f"{run.attack} #{run.round}: {attack.harm.title}: {', '.join(values)}{failed}"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    from .catalogue import CATALOGUE

    parser = argparse.ArgumentParser(prog="python -m tools.abuse", description=__doc__)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help="attacks to run (default: all)")
    parser.add_argument("--list", action="store_true", help="list the attacks")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds (default: 1)")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of each attack (default: 5)")
    parser.add_argument("--small", action="store_true", help="tiny attacks, for a test of this tool itself")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help="write the report into this folder (default: docs/internals, if all attacks are run in full size)",
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.attacks) - CATALOGUE.keys():
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    changed = options.seconds != parser.get_default("seconds")
    if not (options.docs or options.attacks or options.small or changed):
        options.docs = _DOCS
    options.attacks = options.attacks or list(CATALOGUE)
    return options


if __name__ == "__main__":
    sys.exit(main())
