"""`refquant claims`: the lesson's statements, each tested, with the verdict that the test reached."""

import json
import textwrap

from refquant import claims
from refquant.formats.files import replacing


def add_arguments(parser) -> None:
    """Add the options of `refquant claims`."""
    parser.add_argument("--only", metavar="NAMES", help="comma-separated names of claims (default: all)")
    parser.add_argument("--measured", metavar="FILE", help="the JSON of `refquant compare --json`, as more evidence")
    parser.add_argument(
        "--json", metavar="FILE", nargs="?", const="-", help="write the ledger as JSON to a file, or print it"
    )


def run(args) -> int:
    """Test the claims and print the ledger."""
    names = [name.strip() for name in args.only.split(",")] if args.only else None
    rows = claims.run(claims.evidence(args.measured), names)
    text = json.dumps(claims.as_json(rows), indent=2)
    if args.json == "-":
        print(text)
        return 0
    print(render(rows))
    if args.json:
        with replacing(args.json) as file:
            file.write((text + "\n").encode())
    return 0


def render(rows) -> str:
    """The ledger as text: statement, value, verdict, and what there is to say."""
    lines, topic = [], None
    for row in rows:
        if row.claim.topic != topic:
            topic = row.claim.topic
            lines += ["", topic.upper()]
        finding = row.finding
        lines.append(f"[{finding.verdict}] {row.claim.statement}")
        said = finding.value + (f". {finding.note[0].upper()}{finding.note[1:]}" if finding.note else "")
        lines += textwrap.wrap(f"{said}. ({finding.source})", 110, initial_indent="    ", subsequent_indent="    ")
    counts = claims.as_json(rows)["verdicts"]
    return "\n".join([*lines[1:], "", ", ".join(f"{count} {name}" for name, count in counts.items())])
