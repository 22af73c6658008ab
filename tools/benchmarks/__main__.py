"""Measure the bridge and other servers, or write the report of a measurement.

``python -m tools.benchmarks [SCENARIO …]`` measures. ``python -m tools.benchmarks report FILE`` rewrites the report.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..harness.host import machine
from ..harness.output import print_line
from ..harness.tables import machine_table
from .measure import measure
from .plots import draw
from .report import tables
from .results import METRICS, Results, Run
from .scenarios import SCENARIOS, Case, Scenario
from .targets import DEFAULT_TARGETS, TARGETS, applicable_targets


def main() -> int:
    """Run the command line.

    Returns:
        1 if a message was lost, duplicated or out of order, or if a server failed; otherwise 0.
    """
    if sys.argv[1:2] == ["report"]:
        options = _report_options(sys.argv[2:])
        return _report(Results.load(options.file), options)
    options = _options(sys.argv[1:])
    if options.list:
        return _list()
    results = Results(machine())
    try:
        for scenario, case, target, number in _plan(options):
            run = measure(scenario, case, TARGETS[target], number, options.loop, options.settings)
            results.runs.append(run)
            print_line(_line(run))
    except KeyboardInterrupt:
        print_line("Interrupted. These are the results until then.")
    if options.json:
        results.save(options.json)
    return _report(results, options)


def _plan(options: argparse.Namespace) -> Iterator[tuple[Scenario, Case, str, int]]:
    """Yield each target once per round, in a different order each round."""
    for number in range(options.rounds):
        for name in options.scenarios:
            scenario = SCENARIOS[name]
            targets = applicable_targets(scenario, options.targets)
            first = number % max(len(targets), 1)
            for case in scenario.cases(small=options.small):
                for target in (*targets[first:], *targets[:first]):
                    yield scenario, case, target, number


def _report(results: Results, options: argparse.Namespace) -> int:
    written = tables(results)
    for table in written:
        print_line("\n" + table.as_text())
    if options.plots:
        draw(results, options.plots)
    if options.markdown:
        options.markdown.write_text(
            "\n".join(table.as_markdown() for table in (machine_table(results.machine), *written))
        )
    failed = [run for run in results.runs if run.errors]
    if failed:
        print_line(f"{len(failed)} of {len(results.runs)} runs have failed.")
    return 1 if failed else 0


def _line(run: Run) -> str:
    metrics = (f"{name} {METRICS[name].formatted(value)}" for name, value in run.metrics.items())
    error = f"  FAILED: {run.errors[0]}" if run.errors else ""
    return f"{run.scenario} {run.case} {run.target} #{run.round}: {', '.join(metrics)}{error}"


def _list() -> int:
    for name, scenario in SCENARIOS.items():
        unit = f" {scenario.unit}" if scenario.unit else ""
        print_line(f"{name:20}{scenario.title} ({'; '.join(case.name + unit for case in scenario.cases())})")
    print_line("")
    for name, target in TARGETS.items():
        print_line(f"{name:20}{target.title}")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks", description=__doc__)
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="scenarios, or groups such as history (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios and the targets")
    parser.add_argument(
        "--targets",
        type=_targets,
        default=DEFAULT_TARGETS,
        metavar="TARGETS",
        help=f"servers to measure, separated by commas (default: {','.join(DEFAULT_TARGETS)})",
    )
    parser.add_argument(
        "--with", dest="more", type=_targets, default=[], metavar="TARGETS", help="servers to measure in addition"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (default: 5)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a test of the benchmarks themselves")
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop of the Python servers"
    )
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the bridge, as a JSON object")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results as JSON")
    _add_output(parser)
    options = parser.parse_args(arguments)
    unknown = {name for name in options.scenarios if not _scenarios(name)}
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    options.scenarios = [each for name in options.scenarios for each in _scenarios(name)] or list(SCENARIOS)
    options.targets = [*options.targets, *(name for name in options.more if name not in options.targets)]
    return options


def _scenarios(name: str) -> list[str]:
    """Return the scenario of this name, or all of a group, such as ``history`` for ``history-herd`` and others."""
    return [each for each in SCENARIOS if name in (each, each.partition("-")[0])]


def _report_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks report")
    parser.add_argument("file", type=Path, metavar="FILE", help="results that --json has written")
    _add_output(parser)
    return parser.parse_args(arguments)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the results into this folder (SVG)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")


def _targets(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - TARGETS.keys():
        raise argparse.ArgumentTypeError(f"no such target: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
