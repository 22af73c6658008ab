"""The report: a table for each scene, and what became of the goals."""

from collections.abc import Iterator, Sequence

from ..harness.tables import Table
from .results import FIGURES, LATENCIES, Place, Results, Run, Spread
from .scenarios import SCENES, Scene
from .thresholds import GOALS

__all__ = ["goals_table", "machine_table", "tables"]

_BASE = "nats-ws"
_SHOWN_FAULTS = 5


def tables(results: Results) -> list[Table]:
    """One for each scene that was measured, then the goals."""
    measured = {place.scene for place in results.places}
    return [*(_scene_table(scene, results) for name, scene in SCENES.items() if name in measured), goals_table(results)]


def machine_table(results: Results) -> Table:
    """On what was measured."""
    return Table("Machine", ("", ""), [(name, str(fact)) for name, fact in results.machine.items()])


def goals_table(results: Results) -> Table:
    """What was seen of each goal."""
    table = Table("Goals", ("goal", "bound", "seen", ""))
    words = {True: "reached", False: "missed", None: "not measured"}
    for goal in GOALS:
        seen = goal.seen(results)
        table.rows.append((goal.title, goal.bound, _spread(seen, "{:.2f}"), words[goal.reached(results)]))
    return table


def _scene_table(scene: Scene, results: Results) -> Table:
    titles = [FIGURES[figure] for figure in scene.figures]
    header = [scene.unit or "case", "server", *(f"{title.title} ({title.unit})" for title in titles)]
    table = Table(f"{scene.name}: {scene.title}", header)
    for place in (place for place in results.places if place.scene == scene.name):
        cells = [
            _cell(figure, place, results) if scene.tells(figure, results.cores) else f"fewer than {scene.cores} cores"
            for figure in scene.figures
        ]
        table.rows.append((place.case, place.contender, *cells))
        table.notes += _notes(place, results.at(place))
    return table


def _cell(figure: str, place: Place, results: Results) -> str:
    spread = results.spread(figure, place)
    if spread is None:
        busy = figure in LATENCIES and any(run.too_busy and not run.faults for run in results.at(place))
        return "machine too busy" if busy else "-"
    form, scale = FIGURES[figure].form, FIGURES[figure].scale
    text = _spread(Spread(*(value * scale for value in spread)), form)
    base = results.ratio(figure, place, place._replace(contender=_BASE))
    if base is None or place.contender == _BASE or not FIGURES[figure].compared:
        return text
    return f"{text} x{base.median:.2f}"


def _spread(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "-"
    median, least, most = (form.format(value) for value in spread)
    return median if least == most else f"{median} ({least}-{most})"


def _notes(place: Place, runs: Sequence[Run]) -> Iterator[str]:
    where = f"{place.case}, {place.contender}"
    for run in runs:
        if run.faults:
            more = f" and {len(run.faults) - _SHOWN_FAULTS} more" if len(run.faults) > _SHOWN_FAULTS else ""
            yield f"FAILED: {where}, round {run.round}: {'; '.join(run.faults[:_SHOWN_FAULTS])}{more}"
    for count, what in (
        (sum(run.load_bound for run in runs), "load-bound: the clients took over 85 % of a core"),
        (sum(run.too_busy for run in runs), "machine over 85 % busy: latencies not counted"),
    ):
        if count:
            yield f"{where}: {what} ({count} of {len(runs)} rounds)"
