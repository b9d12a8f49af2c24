"""`refquant verify`: check a quantizer, decoder, packer, kernel or file against what other programs say."""

import sys
from pathlib import Path

from tqdm import tqdm

from refquant.errors import BadInput, RefquantError


def add_arguments(parser) -> None:
    """Add the options of `refquant verify`."""
    parser.add_argument("path", metavar="FILE", nargs="?", help="a GGUF file or a checkpoint folder to check")
    parser.add_argument("--against", metavar="DENSE", help="with FILE: the unquantized model, for the error by layer")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--impl", metavar="MODULE[:ATTR]", help="a Python object (default: refquant itself)")
    what.add_argument("--cmd", metavar="COMMAND", help="a program that speaks JSON lines on stdin and stdout")
    what.add_argument("--library", metavar="FILE", help="a shared library with ggml's row functions")
    what.add_argument("--list", action="store_true", help="list the cases")
    what.add_argument("--programs", metavar="FILE", help="run the real programs that are installed; write the page")
    parser.add_argument("--only", metavar="EXPRESSION", help="cases to run, such as 'q4_k and decode' or 'mistake-27'")
    parser.add_argument("--expect", metavar="FILE", help="known failures, a TOML file")
    parser.add_argument("--seconds", type=float, default=30, help="limit for each case (default: %(default)s)")
    parser.add_argument("--format", default="terminal", metavar="KIND",
                        help="what to print: terminal, json, junit, markdown, badge")  # fmt: skip
    parser.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    parser.add_argument("--output", metavar="FILE", help="write the report there instead of printing it")


def run(args) -> int:
    """Run; 0 when all is as it should be, 1 when something is wrong, 2 when nothing could be tested."""
    try:
        return _run(args)
    except (RefquantError, OSError) as problem:
        print(f"refquant verify: {problem}", file=sys.stderr)
        return 2


def _run(args) -> int:
    from refquant.verify import cases, report, runner

    if args.path or args.against:
        return _file(args)
    if args.programs:
        from refquant.verify import programs

        return programs.write(args.programs)
    chosen = cases.select(args.only)
    if args.list:
        for case in chosen:
            print(f"{case.id}  {case.catches}")
        return 0
    if args.seconds <= 0:
        raise BadInput(f"--seconds must be positive, got {args.seconds:g}")
    expectations = runner.read_expectations(args.expect) if args.expect else None
    report.check(args.format)
    implementation = _implementation(args)
    try:
        with tqdm(total=len(chosen), desc="verify", disable=None) as bar:
            found = runner.run(implementation, chosen, expectations, bar.update)
    finally:
        implementation.close()
    text = report.write(found, args.format)
    if args.output:
        Path(args.output).write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
        print(report.summary(found))
    else:
        print(text.rstrip("\n"))
    return found.exit_code


def _implementation(args):
    from refquant.verify.command import Command
    from refquant.verify.implementation import PythonObject

    if args.library is not None:
        return Command.library(args.library, args.seconds)
    if args.cmd is not None:
        return Command.parse(args.cmd, args.seconds)
    return PythonObject.find(args.impl or "refquant.verify.reference:numpy", seconds=args.seconds)


def _file(args) -> int:
    from refquant.verify import files

    if not args.path:
        raise BadInput("--against needs the FILE to check")
    found = files.check(args.path, args.against)
    print(found.as_json() if args.format == "json" else found)
    return 1 if found.problems else 0
