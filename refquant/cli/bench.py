"""`refquant bench WHAT`: speed, against peers or a prediction, measured in one run. WHAT is a module of `bench`."""

from refquant.bench import cpu, split

MODULES = {
    "cpu": (cpu, "the Numba paths against ggml and torch"),
    "split": (split, "a model on two backends, beside the prediction"),
}


def add_arguments(parser) -> None:
    """Add what can be measured, each with its own options."""
    what = parser.add_subparsers(dest="device", metavar="WHAT", required=True)
    for name, (module, summary) in MODULES.items():
        module.add_arguments(what.add_parser(name, help=summary, description=summary.capitalize() + "."))


def run(args) -> int:
    """Measure; the table says the machine, the versions and the date."""
    return MODULES[args.device][0].run(args)
