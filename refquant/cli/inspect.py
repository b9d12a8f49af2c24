"""`refquant inspect`: what a GGUF file or a checkpoint folder holds, and what is wrong with it."""

import json
from dataclasses import asdict
from pathlib import Path

from refquant.errors import BadInput


def add_arguments(parser) -> None:
    """Add the options of `refquant inspect`."""
    parser.add_argument("path", metavar="FILE", help="a GGUF file, or a folder of quantized safetensors")
    parser.add_argument("--tensor", metavar="NAME", help="with a GGUF file: a tensor, one block of which to show")
    parser.add_argument("--block", metavar="I", type=int, default=0, help="which block of it (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """Print the contents; the exit status is 1 where a folder has a problem."""
    return _folder(args) if Path(args.path).is_dir() else _file(args)


def _file(args) -> int:
    from refquant import inspect_file
    from refquant.formats import gguf

    file = gguf.read(args.path)
    if args.tensor:
        print(inspect_file.block(file, args.tensor, args.block))
    elif args.json:
        print(json.dumps(inspect_file.facts(file), indent=2))
    else:
        print(inspect_file.report(file))
    return 0


def _folder(args) -> int:
    from refquant.models import checkpoint

    if args.tensor:
        raise BadInput("--tensor shows a block of a GGUF file; a folder has no blocks")
    found = checkpoint.inspect(args.path)
    if args.json:
        print(json.dumps(asdict(found) | {"bits_per_weight": found.bits_per_weight}, indent=2))
        return 1 if found.problems else 0
    print(f"{found.path}: {found.method or 'not quantized'}, {len(found.layers)} quantized layers")
    for layer in found.layers:
        shape = "x".join(map(str, layer["shape"]))
        print(f"{layer['name']:<44} {layer['format']:<18} {shape:<14} {layer['nbytes']:13,}")
    print(f"bits per quantized weight {found.bits_per_weight:.4f}; other tensors {found.other_bytes:,} bytes")
    for remark in found.remarks:
        print(f"note: {remark}")
    for problem in found.problems:
        print(f"PROBLEM: {problem}")
    print(f"{len(found.problems)} problems" if found.problems else "config and tensors agree")
    return 1 if found.problems else 0
