"""`refquant models`: what can be had by name."""

import json


def add_arguments(parser) -> None:
    """Add the options of `refquant models`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """List the names, what they are, and whether they lie in the cache already."""
    from refquant.models import fetch, tiny
    from refquant.models.load import TINY

    rows = [
        {
            "name": "tiny",
            "description": TINY,
            "licence": "Apache-2.0",
            "bytes": (tiny.FOLDER / "model.safetensors").stat().st_size,
            "source": "in this package",
            "cached": True,
        }
    ] + [
        {
            "name": name,
            "description": wheel.description,
            "licence": wheel.licence,
            "bytes": wheel.member_bytes,
            "source": f"{wheel.requirement} (Python package index)",
            "cached": fetch.cached(name),
        }
        for name, wheel in fetch.WHEELS.items()
    ]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        place = "in the cache" if row["cached"] else "fetched at first use"
        print(f"{row['name']:<10} {row['description']}; {row['licence']}; {row['bytes'] / 1e6:.0f} MB, {place}")
    print("Also: a folder of a Hugging Face causal LM, a GGUF file, or a hub id (organisation/model).")
    return 0
