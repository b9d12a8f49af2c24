"""`refquant notebooks`: build the course's notebooks from their scripts, or check that they are in step."""

import json
import sys

from refquant import course


def add_arguments(parser) -> None:
    """Add the options of `refquant notebooks`."""
    parser.add_argument("action", choices=("build", "check"), help="execute and write, or compare script and notebook")
    parser.add_argument("names", nargs="*", help="such as 02_rounding, 02 or assignments/01_rtn (default: all)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args) -> int:
    """Build or check; 1 where a notebook is out of step."""
    return (_build if args.action == "build" else _check)(args)


def _build(args) -> int:
    rows = []

    def built(name, seconds, size):
        rows.append({"name": name, "seconds": round(seconds, 2), "bytes": size})
        if not args.json:
            print(f"{name:<24} {seconds:6.1f} s {size / 1000:8.0f} kB", flush=True)

    course.build(args.names, progress=not args.quiet and sys.stderr.isatty(), on_built=built)
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{len(rows)} notebooks, {sum(row['seconds'] for row in rows):.1f} s")
    return 0


def _check(args) -> int:
    rows = [{"name": path.stem, "problem": course.out_of_step(path)} for path in course.find_all(args.names)]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:<24} {row['problem'] or 'in step'}")
        if any(row["problem"] for row in rows):
            print("run: refquant notebooks build", file=sys.stderr)
    return 1 if any(row["problem"] for row in rows) else 0
