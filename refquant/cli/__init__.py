"""The `refquant` command. One module a subcommand, loaded only when it is called; each has `add_arguments` and `run`.

Exit status: 0 done, 1 a named error (one line on standard error), 2 wrong arguments, 130 interrupted.
"""

import argparse
import importlib
import os
import sys

from refquant.errors import RefquantError

COMMANDS = {
    "compare": "the lesson's table, measured: quantize a model with every method and score each",
    "quantize": "quantize a model and write it to a folder or a file",
    "convert": "the same numbers in another checkpoint format",
    "inspect": "what a GGUF file or a checkpoint folder holds, and what is wrong with it",
    "imatrix": "measure the importance of a model's input columns, for GGUF files",
    "eval": "perplexity of a model on a text",
    "generate": "continue a prompt",
    "plan": "bytes and predicted speed of a model on a device, or split between GPU and CPU",
    "choose": "which quantization, from where you serve, how much memory and how much loss",
    "claims": "the lesson's quantitative statements, each tested",
    "verify": "check a quantizer, decoder, packer, kernel or file against what other programs say",
    "bench": "the fast paths against other programs, measured in one run",
    "models": "the models that can be had by name",
    "notebooks": "build the course's notebooks from their scripts, or check that they are in step",
    "classroom": "assignments that grade themselves: release them, grade submissions",
    "lab": "open JupyterLab in the notebooks folder",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = _parser(name)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return args.run(args) or 0
    except RefquantError as problem:
        print(f"refquant {args.command}: {problem}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as problem:
        print(f"refquant {args.command}: {problem.name} is not installed; pip install 'refquant[all]'", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has gone, as in `refquant ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        print(f"refquant {args.command}: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nrefquant {args.command}: interrupted; nothing half-written was left", file=sys.stderr)
        return 130


def _parser(name: str | None) -> argparse.ArgumentParser:
    """Build the parser; only the subcommand `name` gets its arguments, so that no other module is loaded."""
    parser = argparse.ArgumentParser(prog="refquant", description="Weight quantization for LLM serving: the reference.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, summary in COMMANDS.items():
        sub = commands.add_parser(command, help=summary, description=summary.capitalize() + ".")
        if command == name:
            module = importlib.import_module(f"refquant.cli.{command}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser
