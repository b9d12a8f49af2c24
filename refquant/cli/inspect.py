"""`refquant inspect`: what a checkpoint folder holds, and everything in it that does not fit its own config."""

import json
from collections import Counter
from dataclasses import asdict


def add_arguments(parser) -> None:
    """Add the options of `refquant inspect`."""
    parser.add_argument("path", help="folder of a model: config.json and safetensors")
    parser.add_argument("--layers", action="store_true", help="list every quantized layer")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """Print what was found; the exit status is 1 when there are problems."""
    from refquant.models import checkpoint

    found = checkpoint.inspect(args.path)
    if args.json:
        print(json.dumps(asdict(found) | {"bits_per_weight": found.bits_per_weight}, indent=2))
        return 1 if found.problems else 0
    print(f"{found.path}: {found.method or 'not quantized'}")
    for name, count in Counter(layer["format"] for layer in found.layers).items():
        print(f"  {count} layers of {name}")
    if found.layers:
        size = sum(layer["nbytes"] for layer in found.layers)
        print(f"  {size / 1e6:.1f} MB, {found.bits_per_weight:.3f} bits per quantized weight, all of it counted")
    print(f"  {found.other_bytes / 1e6:.1f} MB of other tensors")
    for layer in found.layers if args.layers else ():
        print(f"    {layer['name']:<48} {layer['format']:<16} {layer['shape']} {layer['nbytes']} bytes")
    for title, lines in (("problem", found.problems), ("remark", found.remarks)):
        for line in lines:
            print(f"  {title}: {line}")
    print("  no problems found" if not found.problems else f"  {len(found.problems)} problems")
    return 1 if found.problems else 0
