"""The report: tables of all set-ups."""

from collections.abc import Iterable, Iterator

from ..harness.tables import Table
from .catalogue import CATALOGUE
from .publisher import ROLES
from .results import LinkResult, Results, SetupResult
from .setup import Program, Setup

__all__ = ["messages_table", "quiet_table", "setups_table", "statuses_table", "tabs_table"]

_KEPT = "kept"
_BROKEN = "**broken**"
_MOST_STATUSES = 6


def setups_table(results: Results) -> Table:
    """Return a table of the set-ups, with the versions of the proxies."""
    table = Table("Set-ups", ("set-up", "proxy", "configuration", "browser to proxy"))
    for setup, result in _measured(results):
        proxy = f"{setup.proxy.package} {result.version}" if isinstance(setup.proxy, Program) else "our own"
        table.rows.append((setup.name, proxy, setup.title, result.protocol or "-"))
    return table


def messages_table(results: Results) -> Table:
    """Return a table of the busy links. Three values are those of client, EventSource and WebSocket."""
    header = (
        "set-up",
        "first message (s)",
        "messages",
        "published",
        "missed",
        "longest pause (s)",
        "to the end",
        "client",
        "rule",
    )
    table = Table("Messages", header)
    for setup, result in _measured(results):
        if setup.tabs:
            continue
        if result.page:
            table.rows.append((setup.name, *["-"] * (len(header) - 2), "the page doesn't load"))
            table.notes.append(f"{setup.name}: {_escaped(result.page)}")
            continue
        busy = result.links["busy"]
        received = [busy.received[role] for role in ROLES]
        cells = (
            _joined("-" if each.first is None else f"{each.first:.1f}" for each in received),
            _joined(str(each.count) for each in received),
            str(busy.published),
            str(busy.verdict.missed),
            _joined("-" if each.first is None else f"{each.pause:.1f}" for each in received),
            _joined("yes" if each.goes_on else "no" for each in received),
            _transports(busy),
        )
        table.rows.append((setup.name, *cells, _BROKEN if result.failures else _KEPT))
        table.notes += (f"BROKEN: {setup.name}, {failure}" for failure in result.failures)
    return table


def quiet_table(results: Results) -> Table:
    """Return a table of the quiet links, and of the pages that were closed."""
    header = ("set-up", "heartbeats", "disconnected", "messages after the silence", "of", "sessions", "ended after (s)")
    table = Table("Quiet links and closed pages", header)
    for setup, result in _measured(results):
        if setup.tabs or result.page:
            continue
        quiet = result.links["quiet"]
        received = [quiet.received[role] for role in ROLES]
        late = [name for name, seconds in result.gone.items() if seconds is None]
        seconds = max((each for each in result.gone.values() if each is not None), default=None)
        ended = "-" if seconds is None else f"{seconds:.1f}"
        cells = (
            _joined(str(each.frames) for each in received),
            _joined(str(each.ends) for each in received),
            _joined(str(each.count) for each in received),
            str(quiet.published),
            str(sum(result.sessions.values())),
            f"not: {', '.join(late)}" if late else ended,
        )
        table.rows.append((setup.name, *cells))
    return table


def statuses_table(results: Results) -> Table:
    """Return a table of the client's statuses on the busy links."""
    table = Table("Statuses of the client", ("set-up", "seconds, status, transport and reasons"))
    for setup, result in _measured(results):
        if setup.tabs or result.page:
            continue
        shown = [_escaped(line) for line in result.links["busy"].statuses]
        if len(shown) > _MOST_STATUSES:
            shown[_MOST_STATUSES - 1 : -1] = [f"… ({len(shown) - _MOST_STATUSES} more)"]
        table.rows.append((setup.name, "<br>".join(shown)))
    return table


def tabs_table(results: Results) -> Table:
    """Return a table of the set-ups with several tabs. Two values are those of client and EventSource."""
    table = Table("Tabs", ("set-up", "tab", "first message (s)", "messages", "published", "last status", "rule"))
    for setup, result in _measured(results):
        if not setup.tabs:
            continue
        for name, tab in result.links.items():
            received = [tab.received[role] for role in ("client", "eventsource")]
            cells = (
                _joined("-" if each.first is None else f"{each.first:.1f}" for each in received),
                _joined(str(each.count) for each in received),
                str(tab.published),
                next((_escaped(line) for line in reversed(tab.statuses) if not line.endswith("ready")), "-"),
                _BROKEN if tab.verdict.failures else _KEPT,
            )
            table.rows.append((setup.name, name.removeprefix("tab "), *cells))
        table.notes += (f"BROKEN: {setup.name}, {failure}" for failure in result.failures)
    return table


def _measured(results: Results) -> Iterator[tuple[Setup, SetupResult]]:
    # A stored result may be that of a set-up that was removed.
    return ((CATALOGUE[result.setup], result) for result in results.setups if result.setup in CATALOGUE)


def _joined(values: Iterable[str]) -> str:
    return " / ".join(values)


def _transports(link: LinkResult) -> str:
    """Return the transports by which the client was connected, in their order."""
    connected = [line.split(" | ")[2] for line in link.statuses if line.split(" | ")[1] == "connected"]
    changes = [name for name, before in zip(connected, ["", *connected], strict=False) if name != before]
    return ", ".join(changes) or "-"


def _escaped(text: str) -> str:
    return text.replace("|", "·").replace("<", "&lt;")
