"""Tables, as plain text for a terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Table"]


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
