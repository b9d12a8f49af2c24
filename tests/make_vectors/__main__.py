"""Write the conformance kit's vectors anew: `python tests/make_vectors [FUNCTION ...]`; `--check` only compares.

Needs the `test` and `interop` extras. Programs that these do not install have left their results in tests/data, each
beside the script that made it. Nothing of refquant computes an expected result.
"""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))  # ggml.py, rows.py

import casts
import checkpoints
import gguf_blocks
import methods
import products
from suite import VECTORS

SUITES = [suite for module in (gguf_blocks, checkpoints, casts, products, methods) for suite in module.SUITES]


def build(names=()):
    """Make the suites: name -> its files."""
    made = [suite() for suite in SUITES if not names or suite.__name__ in names]
    return {suite.name: suite.files() for suite in made}


if __name__ == "__main__":
    check = "--check" in sys.argv
    different = []
    for name, files in build([name for name in sys.argv[1:] if name != "--check"]).items():
        folder = VECTORS / name
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            path = folder / file
            if not path.exists() or path.read_bytes() != content:
                different.append(f"{name}/{file}")
                if not check:
                    path.write_bytes(content)
        print(f"{name}: {sum(map(len, files.values())):,} bytes")
    print("different: " + ", ".join(different) if different else "all as committed")
    sys.exit(check and bool(different))
