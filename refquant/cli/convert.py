"""`refquant convert`: repack a folder of quantized weights into another format, the same numbers."""

FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "fp8", "bitsandbytes")


def add_arguments(parser) -> None:
    """Add the options of `refquant convert`."""
    parser.add_argument("source", help="folder of a quantized model")
    parser.add_argument("target", help="folder to be made; a model that is there is replaced")
    parser.add_argument("--format", required=True, choices=FORMATS, help="checkpoint format to write")


def run(args) -> int:
    """Convert, with a bar over the layers."""
    from refquant.models import checkpoint

    command = f"refquant convert {args.source} {args.target} --format {args.format}"
    checkpoint.convert(args.source, args.target, args.format, command, progress=True)
    print(f"{args.target}: the same numbers as {args.source}, in the {args.format} format")
    return 0
