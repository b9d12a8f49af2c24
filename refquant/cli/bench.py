"""`refquant bench cpu`: the Numba paths against ggml and torch, in one run."""

from refquant.bench import cpu


def add_arguments(parser) -> None:
    """Add the options of `refquant bench`."""
    parser.add_argument("device", choices=["cpu"], help="what to measure")
    cpu.add_arguments(parser)


def run(args) -> int:
    """Measure; the table says the machine, the versions and the date."""
    return cpu.run(args)
