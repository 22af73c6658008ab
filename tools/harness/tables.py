"""Tables, as plain text for a terminal and as Markdown in a document."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Table", "machine_table", "write_tables"]

_SECTION = "measured"


@dataclass
class Table:
    """A title, rows under a header, and notes below."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """Return the table with aligned columns."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        rows = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        rows.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.title, "", *rows, *self.notes, ""])

    def as_markdown(self) -> str:
        """Return a heading, a table, and the notes as a list."""
        rows = [f"| {' | '.join(line)} |" for line in (self.header, *self.rows)]
        rows.insert(1, "|---" * len(self.header) + "|")
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"### {self.title}", "", *rows, *notes, ""])


def machine_table(facts: Mapping[str, Any]) -> Table:
    """Return a table of the facts about the machine."""
    return Table("Machine", ("", ""), [(name, str(fact)) for name, fact in facts.items()])


def write_tables(document: Path, tables: Iterable[Table], section: str = _SECTION) -> None:
    """Replace the text between the marks of a section of the document by the tables.

    The mark ``<!-- measured -->``, or that with another name, begins the section, and ``<!-- end -->`` ends it.
    """
    text = "\n".join(table.as_markdown() for table in tables)
    between = re.compile(f"(?<=<!-- {section} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    document.write_text(between.sub(lambda _: f"\n{text}\n", document.read_text()))
