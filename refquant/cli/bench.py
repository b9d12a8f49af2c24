"""`refquant bench cpu`, `gpu`: the fast paths against their peers; `split`: a model on two of them. Each in one run."""

from refquant.bench import cpu, gpu, split

DEVICES = {"cpu": cpu, "gpu": gpu, "split": split}


def add_arguments(parser) -> None:
    """Add the options of `refquant bench`."""
    devices = parser.add_subparsers(dest="device", required=True, metavar="cpu|gpu|split")
    for name, module in DEVICES.items():
        module.add_arguments(devices.add_parser(name, help=module.__doc__.splitlines()[0]))


def run(args) -> int:
    """Measure; the table says the machine, the versions and the date."""
    return DEVICES[args.device].run(args)
