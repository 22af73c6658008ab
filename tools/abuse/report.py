"""The report: the tables of all attacks."""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from ..harness.tables import Table
from .attack import Attack
from .catalogue import CATALOGUE
from .limits_off import LIMITS
from .results import Observation, Results, Run, Seen
from .verdict import failures, typical

__all__ = ["attacks_table", "cost_table", "failed_attacks"]

_NONE = "-"
_LOST = "lost"


def cost_table(results: Results) -> Table:
    """Return a table of what an honest client sees. Three values are those before the attack, without and with limits.

    The note at the end has the machine of the measurement.
    """
    header = (
        "attack",
        "means",
        "p50 (ms)",
        "p99 (ms)",
        "longest (ms)",
        "lost",
        "harm",
        "without limits",
        "with limits",
    )
    table = Table("Cost of abuse", header)
    for attack, runs in _measured(results):
        bounded, control = _bounded(runs), _control(runs)
        cells = (
            _joined(runs, lambda seen: seen.p50),
            _joined(runs, lambda seen: seen.p99),
            _longest(runs),
            _lost(runs),
            attack.harm.title,
            attack.harm.formatted(typical(attack.harm, control)) if control else _NONE,
            attack.harm.formatted(typical(attack.harm, bounded)) if bounded else _NONE,
        )
        table.rows.append((attack.name, attack.means, *cells))
        table.notes += (f"BROKEN: {attack.name}, {failure}" for failure in failures(attack, runs, small=results.small))
    table.notes.append("; ".join(f"{name}: {fact}" for name, fact in results.machine.items()))
    return table


def attacks_table(results: Results) -> Table:
    """Return a table of the limits of each attack."""
    header = ("attack", "counts as harm from", "settings", "without limits")
    table = Table("Limits of the attacks", header)
    for attack, _ in _measured(results):
        settings = {**attack.settings, **attack.limited}
        cells = attack.harm.formatted(attack.harm.harmful_from), _settings(settings) or "defaults", _without(attack)
        table.rows.append((attack.name, *cells))
    return table


def failed_attacks(results: Results) -> list[str]:
    """Return the names of the attacks that break the rule."""
    return [attack.name for attack, runs in _measured(results) if any(failures(attack, runs, small=results.small))]


def _measured(results: Results) -> Iterator[tuple[Attack, list[Run]]]:
    return ((attack, runs) for attack in CATALOGUE.values() if (runs := results.of(attack.name)))


def _bounded(runs: Iterable[Run]) -> list[Observation]:
    return [run.bounded for run in runs if not run.bounded.error]


def _control(runs: Iterable[Run]) -> list[Observation]:
    return [run.control for run in runs if run.control is not None and not run.control.error]


def _joined(runs: Sequence[Run], value: Callable[[Seen], float | None]) -> str:
    """Return the medians before the attack, without limits and with them."""
    bounded, control = _bounded(runs), _control(runs)
    parts = (
        [value(each.quiet) for each in bounded],
        [value(each.attacked) for each in control],
        [value(each.attacked) for each in bounded],
    )
    return " / ".join(_median(values) for values in parts)


def _median(values: Sequence[float | None]) -> str:
    if not values:
        return _NONE
    present = [each for each in values if each is not None]
    return f"{statistics.median(present):,.1f}" if 2 * len(present) > len(values) else _LOST


def _longest(runs: Sequence[Run]) -> str:
    bounded, control = _bounded(runs), _control(runs)
    parts = (
        [each.quiet.longest for each in bounded],
        [max(each.onset.longest, each.attacked.longest) for each in control],
        [max(each.onset.longest, each.attacked.longest) for each in bounded],
    )
    return " / ".join(f"{max(values):,.0f}" if values else _NONE for values in parts)


def _lost(runs: Sequence[Run]) -> str:
    bounded, control = _bounded(runs), _control(runs)
    parts = [each.quiet for each in bounded], [each.attacked for each in control], [each.attacked for each in bounded]
    return " / ".join(_share(seen) for seen in parts)


def _share(seen: Sequence[Seen]) -> str:
    if not seen:
        return _NONE
    lost = sum(each.lost for each in seen)
    return f"{100 * lost / max(sum(each.published for each in seen), 1):.0f} %" if lost else "0"


def _without(attack: Attack) -> str:
    if attack.built_in:
        return f"no control: {attack.built_in}"
    parts = [_settings(attack.unlimited), *(LIMITS[name][0] for name in attack.lifted)]
    if attack.control_attacker is not None:
        parts.append((attack.control_attacker.__doc__ or "").rstrip("."))
    if attack.limited:
        parts.append(f"without {_settings(attack.limited)}")
    return "; ".join(part for part in parts if part)


def _settings(settings: object) -> str:
    assert isinstance(settings, dict)
    return ", ".join(f"`{name}={json.dumps(value)}`" for name, value in settings.items())
