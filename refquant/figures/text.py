"""Numbers as text in a notebook: tables, and rows of the claims ledger."""

from collections.abc import Iterable

from refquant import claims


def table(header: Iterable[str], rows: Iterable[Iterable], words: bool = False):
    """A table as a notebook's output; all but the first column stand to the right, unless they hold `words`."""
    from IPython.display import Markdown

    header = [str(cell) for cell in header]
    lines = [
        header,
        [":---", *[":---" if words else "---:"] * (len(header) - 1)],
        *([str(cell) for cell in row] for row in rows),
    ]
    return Markdown("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines))


def ledger(*names: str):
    """The claims of these names, tested now: what the lesson says, what was found, the verdict.

    Raises
    ------
    UnknownName
        No such claim; the message lists them.
    """
    rows = {row.claim.name: row for row in claims.run(names=names)}
    shown = []
    for name in names:
        row = rows[name]
        found = row.finding.value + (f"; {row.finding.note}" if row.finding.note else "")
        shown.append((f"{row.claim.statement} (`{name}`)", found, row.finding.verdict, row.finding.source))
    return table(("The usual explanation says", "Found", "Verdict", "From"), shown, words=True)
