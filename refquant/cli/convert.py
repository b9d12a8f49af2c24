"""`refquant convert`: the same numbers in another checkpoint format."""


def add_arguments(parser) -> None:
    """Add the options of `refquant convert`."""
    parser.add_argument("source", help="a folder of quantized weights")
    parser.add_argument("out", help="the folder to make")
    parser.add_argument("--format", required=True, help="gptq, gptq_v2, awq, compressed-tensors, fp8, bitsandbytes")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args) -> int:
    """Repack, or say precisely why it cannot be done; no number changes."""
    from refquant.models import checkpoint

    checkpoint.convert(args.source, args.out, args.format, progress=not args.quiet)
    print(f"{args.out}: {args.format}")
    return 0
