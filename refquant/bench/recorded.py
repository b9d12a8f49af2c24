"""The measurements that are kept in kernels/README.md, as tables.

tables(read())    every Markdown table: the heading above it, the header, the rows as text
find(title)       the table whose heading, or first column, begins so; None where nothing was recorded
"""

from dataclasses import dataclass
from pathlib import Path

import refquant
from refquant.errors import Unavailable


@dataclass(frozen=True)
class Table:
    """A table of the file: the last heading and the last paragraph before it, column names, rows."""

    heading: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str, **where: str) -> list[str]:
        """Cells of a column (the first of that name) in the rows where other columns have these values."""
        at = self.header.index(name)
        wanted = {self.header.index(key): value for key, value in where.items()}
        return [row[at] for row in self.rows if all(row[i] == value for i, value in wanted.items())]


def read() -> str:
    """Text of the checkout's kernels/README.md; raise `Unavailable` where refquant was installed without one."""
    path = Path(refquant.__file__).resolve().parents[1] / "kernels" / "README.md"
    if not path.is_file():
        raise Unavailable("the recorded measurements are part of a clone of the repository (kernels/README.md)")
    return path.read_text(encoding="utf-8")


def tables(text: str) -> list[Table]:
    """Every Markdown table of a text."""
    found, heading, note, lines = [], "", "", []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(tuple(cell.strip() for cell in line.strip().strip("|").split("|")))
            continue
        if len(lines) > 1:
            found.append(Table(heading, note, lines[0], tuple(lines[2:])))
        lines = []
        if line.startswith("#"):
            heading = line.lstrip("# ").strip()
        elif line.strip():
            note = line.strip()
    return found


def find(title: str, text: str | None = None) -> Table | None:
    """The first table under a heading that begins with `title`."""
    return next((t for t in tables(read() if text is None else text) if t.heading.startswith(title)), None)
