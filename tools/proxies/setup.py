"""The definition of a set-up: a proxy, its configuration, and the way in which the browser uses it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .rules import Rules

__all__ = ["Program", "Setup", "Source"]

Source: TypeAlias = Literal["own", "debian", "node"]
"""The origin of a proxy: this project, a Debian package, or npm."""


@dataclass(frozen=True)
class Program:
    """A proxy that is a program of its own.

    In the arguments and in the configuration, names between two @ are replaced: PORT and TARGET (ports of the proxy and
    of the app), FOLDER (for files of the proxy), CONFIGURATION (a path), CERTIFICATE, KEY and BOTH (paths of PEM
    files), NODE (the folder of the scripts), and USER (unprivileged).

    Attributes:
        command: The command.
        package: The package that contains it.
        arguments: The rest of the command line. The program must stay in the foreground.
        source: The origin of the package.
    """

    command: str
    package: str
    arguments: tuple[str, ...]
    source: Source = "debian"


@dataclass(frozen=True)
class Setup:
    """A proxy with one configuration.

    Attributes:
        title: The configuration, for the report.
        proxy: A program, or the rules of a middlebox.
        configuration: The name of a file in the folder ``configurations``.
        arguments: Further arguments of the program.
        scheme: The scheme of the page. With https the browser accepts any certificate.
        forward: The proxy is set in the browser itself.
        settings: Settings of the bridge that differ from the defaults.
        tabs: The number of tabs that use the client at the same time; 0 for the usual page.
    """

    name: str
    title: str
    proxy: Program | Rules
    configuration: str = ""
    arguments: tuple[str, ...] = ()
    scheme: Literal["http", "https"] = "http"
    forward: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    tabs: int = 0

    @property
    def source(self) -> Source:
        """The origin of the proxy."""
        return self.proxy.source if isinstance(self.proxy, Program) else "own"
