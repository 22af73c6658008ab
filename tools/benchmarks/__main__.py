"""Command line of the benchmarks.

``python -m tools.benchmarks [SCENARIO …]`` measures; ``python -m tools.benchmarks report FILE`` rewrites the report.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..harness.host import machine
from .measure import measure
from .plots import draw
from .report import machine_table, tables
from .results import FIGURES, Results, Run
from .scenarios import SCENES, Case, Scene
from .targets import CONTENDERS, DEFAULT_CONTENDERS, taking_part


def main() -> int:
    """Exit code 1: a message was lost, doubled or out of order, or a server did not do what it should."""
    if sys.argv[1:2] == ["report"]:
        options = _report_options(sys.argv[2:])
        return _report(Results.load(options.file), options)
    options = _options(sys.argv[1:])
    if options.list:
        return _list()
    results = Results(machine())
    try:
        for scene, case, contender, number in _plan(options):
            run = measure(scene, case, CONTENDERS[contender], number, options.loop, options.settings)
            results.runs.append(run)
            _say(_line(run))
    except KeyboardInterrupt:
        _say("Interrupted; this is what was measured until then.")
    if options.json:
        results.save(options.json)
    return _report(results, options)


def _plan(options: argparse.Namespace) -> Iterator[tuple[Scene, Case, str, int]]:
    """Every contender once in each round, each time in another order."""
    for number in range(options.rounds):
        for name in options.scenes or SCENES:
            scene = SCENES[name]
            contenders = taking_part(scene, options.servers)
            turn = number % max(len(contenders), 1)
            for case in scene.cases(small=options.small):
                for contender in (*contenders[turn:], *contenders[:turn]):
                    yield scene, case, contender, number


def _report(results: Results, options: argparse.Namespace) -> int:
    written = tables(results)
    for table in written:
        _say("\n" + table.as_text())
    if options.plots:
        draw(results, options.plots)
    if options.markdown:
        options.markdown.write_text("\n".join(table.as_markdown() for table in (machine_table(results), *written)))
    failed = [run for run in results.runs if run.faults]
    if failed:
        _say(f"{len(failed)} of {len(results.runs)} runs have failed.")
    return 1 if failed else 0


def _line(run: Run) -> str:
    figures = (f"{name} {FIGURES[name].text(value)}" for name, value in run.figures.items())
    faults = f"  FAILED: {run.faults[0]}" if run.faults else ""
    return f"{run.scene} {run.case} {run.contender} #{run.round}: {', '.join(figures)}{faults}"


def _list() -> int:
    for name, scene in SCENES.items():
        unit = f" {scene.unit}" if scene.unit else ""
        _say(f"{name:16}{scene.title} ({'; '.join(case.name + unit for case in scene.cases())})")
    _say("")
    for name, contender in CONTENDERS.items():
        _say(f"{name:16}{contender.title}")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help="what to measure (default: everything)")
    parser.add_argument("--list", action="store_true", help="tell what scenes and servers there are")
    parser.add_argument("--servers", type=_servers, default=DEFAULT_CONTENDERS, help="separated by commas")
    parser.add_argument("--with", dest="more", type=_servers, default=[], help="further servers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see whether everything works")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop", help="of the Python servers")
    parser.add_argument("--settings", type=json.loads, default={}, help="of the bridge, as a JSON object")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results")
    _add_output(parser)
    options = parser.parse_args(arguments)
    unknown = set(options.scenes) - SCENES.keys()
    if unknown:
        parser.error(f"no such scene: {', '.join(sorted(unknown))}")
    options.servers += [name for name in options.more if name not in options.servers]
    return options


def _report_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks report")
    parser.add_argument("file", type=Path, metavar="FILE", help="what --json has written")
    _add_output(parser)
    return parser.parse_args(arguments)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the results (SVG)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")


def _servers(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - CONTENDERS.keys():
        raise argparse.ArgumentTypeError(f"no such server: {', '.join(sorted(unknown))}")
    return names


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
