"""The report: a table for each scenario, and one for the thresholds."""

from collections.abc import Iterator, Sequence

from ..harness.tables import Table
from .results import LATENCIES, METRICS, Results, Run, RunKey, Spread
from .scenarios import SCENARIOS, Scenario
from .thresholds import THRESHOLDS

__all__ = ["tables", "thresholds_table"]

_BASELINE = "nats-ws"
_MAX_ERRORS = 5


def tables(results: Results) -> list[Table]:
    """Return a table for each measured scenario, and the table of thresholds."""
    measured = {key.scenario for key in results.keys}
    scenarios = [_scenario_table(scenario, results) for name, scenario in SCENARIOS.items() if name in measured]
    return [*scenarios, thresholds_table(results)]


def thresholds_table(results: Results) -> Table:
    """Return a table of the thresholds and the measured values."""
    table = Table("Thresholds", ("threshold", "bound", "measured", ""))
    words = {True: "met", False: "missed", None: "not measured"}
    for threshold in THRESHOLDS:
        measured = threshold.measured(results)
        table.rows.append(
            (threshold.title, threshold.bound, _formatted(measured, "{:.2f}"), words[threshold.is_met(results)])
        )
    return table


def _scenario_table(scenario: Scenario, results: Results) -> Table:
    metrics = [METRICS[metric] for metric in scenario.metrics]
    header = [scenario.unit or "case", "server", *(f"{metric.title} ({metric.unit})" for metric in metrics)]
    table = Table(f"{scenario.name}: {scenario.title}", header)
    for key in (key for key in results.keys if key.scenario == scenario.name):
        cells = [
            _cell(metric, key, results)
            if scenario.is_meaningful(metric, results.cores)
            else f"fewer than {scenario.cores} cores"
            for metric in scenario.metrics
        ]
        table.rows.append((key.case, key.target, *cells))
        table.notes += _notes(key, results.of(key))
    return table


def _cell(metric: str, key: RunKey, results: Results) -> str:
    spread = results.spread(metric, key)
    if spread is None:
        busy = metric in LATENCIES and any(run.too_busy and not run.errors for run in results.of(key))
        return "machine too busy" if busy else "-"
    scale = METRICS[metric].scale
    text = _formatted(Spread(*(value * scale for value in spread)), METRICS[metric].format)
    ratio = results.ratio(metric, key, key._replace(target=_BASELINE))
    if ratio is None or key.target == _BASELINE or not METRICS[metric].compared:
        return text
    return f"{text} x{ratio.median:.2f}"


def _formatted(spread: Spread | None, form: str) -> str:
    if spread is None:
        return "-"
    median, minimum, maximum = (form.format(value) for value in spread)
    return median if minimum == maximum else f"{median} ({minimum}-{maximum})"


def _notes(key: RunKey, runs: Sequence[Run]) -> Iterator[str]:
    name = f"{key.case}, {key.target}"
    for run in runs:
        if run.errors:
            more = f" and {len(run.errors) - _MAX_ERRORS} more" if len(run.errors) > _MAX_ERRORS else ""
            yield f"FAILED: {name}, round {run.round}: {'; '.join(run.errors[:_MAX_ERRORS])}{more}"
    for count, note in (
        (sum(run.load_bound for run in runs), "load-bound: the clients took over 85 % of a core"),
        (sum(run.too_busy for run in runs), "machine over 85 % busy: latencies not counted"),
    ):
        if count:
            yield f"{name}: {note} ({count} of {len(runs)} rounds)"
