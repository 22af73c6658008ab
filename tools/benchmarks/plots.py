"""Plots of the tables (SVG). The same results give the same bytes. Needs matplotlib (extra ``bench``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .results import METRICS, Results, RunKey, Spread
from .scenarios import SCENARIOS, Scenario
from .targets import TARGETS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_PALETTE = (
    *("#0b6e4f", "#3c9d7a", "#86c5ae", "#6bbf59", "#8fb339", "#b0c7a1"),
    *("#27476e", "#c8553d", "#7a7a7a", "#8e6c8a"),
)
_COLORS = dict(zip(TARGETS, _PALETTE, strict=True))
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sanic-nats-bridge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
}
_WIDTH_INCHES = 7.5
_BAR_METRICS = (
    *("cpu", "rate", "p50", "p99", "memory", "connect", "local", "relayed"),
    *("plain_cpu", "resume_cpu", "message_cpu", "harm", "core_cpu", "stored_cpu", "p50_ratio", "state_cpu"),
    *("buffer_share", "command_cpu", "answer_p50", "answer_p99"),
)
_LINE_METRICS = ("cpu", "p99")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw each measured scenario into a file of the folder."""
    import matplotlib as mpl

    mpl.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    measured = {key.scenario for key in results.keys}
    with mpl.rc_context(_STYLE):
        return [
            _draw(scenario, results, folder / f"{name}.svg") for name, scenario in SCENARIOS.items() if name in measured
        ]


def _draw(scenario: Scenario, results: Results, path: Path) -> Path:
    from matplotlib import pyplot as plt

    keys = [key for key in results.keys if key.scenario == scenario.name]
    candidates = _LINE_METRICS if scenario.unit else _BAR_METRICS
    metrics = [
        metric for metric in candidates if metric in scenario.metrics and scenario.is_meaningful(metric, results.cores)
    ]
    heights = [3.2 if scenario.unit else 0.9 + 0.27 * len(keys) for _ in metrics]
    figure, grid = plt.subplots(
        len(metrics),
        squeeze=False,
        figsize=(_WIDTH_INCHES, sum(heights) + 0.5),
        height_ratios=heights,
        layout="constrained",
    )
    figure.suptitle(scenario.title, fontsize=13, fontweight="bold")
    for metric, axes in zip(metrics, grid[:, 0], strict=True):
        axes.set_title(f"{METRICS[metric].title}, {METRICS[metric].unit}", loc="left")
        (_lines if scenario.unit else _bars)(axes, scenario, metric, keys, results)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return path


def _bars(axes: "Axes", scenario: Scenario, metric: str, keys: Sequence[RunKey], results: Results) -> None:
    """Draw a bar for each target and case: the median, with a line from the minimum to the maximum."""
    for row, key in enumerate(keys):
        spread = _scaled(metric, key, results)
        if spread is None:
            axes.text(0, row, " -", va="center")
            continue
        reach = [[spread.median - spread.minimum], [spread.maximum - spread.median]]
        axes.barh(row, spread.median, color=_COLORS[key.target], height=0.75)
        axes.errorbar(spread.median, row, xerr=reach, color="black", capsize=2, linewidth=1)
        text = METRICS[metric].format.format(spread.median)
        axes.annotate(text, (spread.maximum, row), (5, 0), textcoords="offset points", va="center")
    several = len({key.case for key in keys}) > 1
    names = [f"{key.target}, {key.case}" if several else key.target for key in keys]
    axes.set_yticks(range(len(keys)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)


def _lines(axes: "Axes", scenario: Scenario, metric: str, keys: Sequence[RunKey], results: Results) -> None:
    """Draw a line for each target over the sizes, with a label and a band from the minimum to the maximum."""
    from matplotlib.ticker import LogLocator

    ends = []
    for target in dict.fromkeys(key.target for key in keys):
        points = [
            (_size(key.case), spread)
            for key in keys
            if key.target == target and (spread := _scaled(metric, key, results)) is not None
        ]
        if not points:
            continue
        sizes = [size for size, _ in points]
        medians = [spread.median for _, spread in points]
        color = _COLORS[target]
        axes.plot(sizes, medians, color=color, marker="o", markersize=4)
        axes.fill_between(
            sizes,
            [spread.minimum for _, spread in points],
            [spread.maximum for _, spread in points],
            color=color,
            alpha=0.15,
        )
        ends.append((medians[-1], sizes[-1], target))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(scenario.unit)
    axes.grid(axis="y", alpha=0.3)
    _label_lines(axes, ends)
    ticks = sorted({_size(key.case) for key in keys})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()


def _label_lines(axes: "Axes", ends: Sequence[tuple[float, float, str]]) -> None:
    """Write the name of each line at its end, without overlaps."""
    lowest = float("-inf")
    for height, size, target in sorted(ends):
        _, pixels = axes.transData.transform((size, height))
        shown = max(pixels, lowest)
        lowest = shown + 13 * axes.figure.dpi / 72
        axes.annotate(
            target,
            (size, height),
            (8, (shown - pixels) * 72 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            color=_COLORS[target],
            annotation_clip=False,
        )


def _scaled(metric: str, key: RunKey, results: Results) -> Spread | None:
    spread = results.spread(metric, key)
    return None if spread is None else Spread(*(value * METRICS[metric].scale for value in spread))


def _size(case: str) -> float:
    return float(case.replace(",", ""))
