"""The tables as pictures (SVG); the same results give the same bytes. Needs matplotlib (extra ``bench``)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .results import FIGURES, Place, Results, Spread
from .scenarios import SCENES, Scene
from .targets import CONTENDERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_PALETTE: Final = ("#0b6e4f", "#6bbf59", "#8fb339", "#b0c7a1", "#27476e", "#c8553d", "#7a7a7a", "#8e6c8a")
_COLORS: Final = dict(zip(CONTENDERS, _PALETTE, strict=True))
_STYLE: Final[dict[Any, Any]] = {
    "svg.hashsalt": "sanic-nats-bridge",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
}
_WIDTH_INCHES: Final = 7.5
_PLOTTED: Final = ("cpu", "rate", "p50", "p99", "memory", "connect", "local", "relayed")
_LINES: Final = ("cpu", "p99")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw each scene that was measured into a file of the folder."""
    import matplotlib as mpl

    mpl.use("svg")
    folder.mkdir(parents=True, exist_ok=True)
    measured = {place.scene for place in results.places}
    with mpl.rc_context(_STYLE):
        return [_draw(scene, results, folder / f"{name}.svg") for name, scene in SCENES.items() if name in measured]


def _draw(scene: Scene, results: Results, path: Path) -> Path:
    from matplotlib import pyplot as plt

    places = [place for place in results.places if place.scene == scene.name]
    shown = _LINES if scene.unit else _PLOTTED
    figures = [figure for figure in shown if figure in scene.figures and scene.tells(figure, results.cores)]
    heights = [3.2 if scene.unit else 0.9 + 0.27 * len(places) for _ in figures]
    drawing, grid = plt.subplots(
        len(figures),
        squeeze=False,
        figsize=(_WIDTH_INCHES, sum(heights) + 0.5),
        height_ratios=heights,
        layout="constrained",
    )
    drawing.suptitle(scene.title, fontsize=13, fontweight="bold")
    for figure, axes in zip(figures, grid[:, 0], strict=True):
        axes.set_title(f"{FIGURES[figure].title}, {FIGURES[figure].unit}", loc="left")
        (_lines if scene.unit else _bars)(axes, scene, figure, places, results)
    drawing.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(drawing)
    return path


def _bars(axes: "Axes", scene: Scene, figure: str, places: Sequence[Place], results: Results) -> None:
    """A bar for each server and case, as long as the median, with a line from the least to the most."""
    for row, place in enumerate(places):
        spread = _scaled(figure, place, results)
        if spread is None:
            axes.text(0, row, " -", va="center")
            continue
        reach = [[spread.median - spread.least], [spread.most - spread.median]]
        axes.barh(row, spread.median, color=_COLORS[place.contender], height=0.75)
        axes.errorbar(spread.median, row, xerr=reach, color="black", capsize=2, linewidth=1)
        text = FIGURES[figure].form.format(spread.median)
        axes.annotate(text, (spread.most, row), (5, 0), textcoords="offset points", va="center")
    several = len({place.case for place in places}) > 1
    names = [f"{place.contender}, {place.case}" if several else place.contender for place in places]
    axes.set_yticks(range(len(places)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)


def _lines(axes: "Axes", scene: Scene, figure: str, places: Sequence[Place], results: Results) -> None:
    """A line for each server over the sizes, with its name at its end and a band from the least to the most."""
    from matplotlib.ticker import LogLocator

    ends = []
    for contender in dict.fromkeys(place.contender for place in places):
        points = [
            (_amount(place.case), spread)
            for place in places
            if place.contender == contender and (spread := _scaled(figure, place, results)) is not None
        ]
        if not points:
            continue
        amounts = [amount for amount, _ in points]
        medians = [spread.median for _, spread in points]
        color = _COLORS[contender]
        axes.plot(amounts, medians, color=color, marker="o", markersize=4)
        axes.fill_between(
            amounts,
            [spread.least for _, spread in points],
            [spread.most for _, spread in points],
            color=color,
            alpha=0.15,
        )
        ends.append((medians[-1], amounts[-1], contender))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(scene.unit)
    axes.grid(axis="y", alpha=0.3)
    _name_ends(axes, ends)
    ticks = sorted({_amount(place.case) for place in places})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()


def _name_ends(axes: "Axes", ends: Sequence[tuple[float, float, str]]) -> None:
    """Write each line's name beside its end, none over another."""
    lowest = float("-inf")
    for height, amount, contender in sorted(ends):
        _, pixels = axes.transData.transform((amount, height))
        shown = max(pixels, lowest)
        lowest = shown + 13 * axes.figure.dpi / 72
        axes.annotate(
            contender,
            (amount, height),
            (8, (shown - pixels) * 72 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            color=_COLORS[contender],
            annotation_clip=False,
        )


def _scaled(figure: str, place: Place, results: Results) -> Spread | None:
    spread = results.spread(figure, place)
    return None if spread is None else Spread(*(value * FIGURES[figure].scale for value in spread))


def _amount(case: str) -> float:
    return float(case.replace(",", ""))
