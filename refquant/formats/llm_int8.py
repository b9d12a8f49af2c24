"""LLM.int8 weights as bitsandbytes' files hold them: one byte a weight and the maximum of each row.

A matrix [n, k]; in a file the arrays are called `<name>.weight` and `<name>.SCB`::

    array       dtype     shape    meaning
    CB          int8      [n, k]   code, -127 to 127
    SCB         float32   [n]      largest magnitude of the row
    threshold   float32   []       of the decomposition, only where it is not 6.0; in a file, in config.json

    weight = CB * SCB / 127, as (CB * SCB) * float32(1 / 127)

Bits per weight: 8 + 32 / k. The code -128 is never written and decodes as it stands.

Leaves out: the file's `weight_format` (0, "row").
"""

import numpy as np

from refquant import ops
from refquant.grids import as_grid
from refquant.quantized import Format, register_format


def _layout(n, k):
    return {"CB": ((n, k), ("int8",)), "SCB": ((n,), ("float32",))}


register_format(Format("llm-int8", "llm-int8", _layout, optional=lambda n, k: {"threshold": ((), ("float32",))}))


@ops.part("pack", "llm-int8")
def pack(fields: dict, name: str) -> dict:
    """Lay out codes (bytes, as uint8) [n, k] and scales float32 [n, 1]."""
    return {"CB": fields["codes"].view(np.int8), "SCB": fields["scales"][:, 0]}


@ops.part("unpack", "llm-int8")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return codes uint8 [n, k] and scales float32 [n, 1]."""
    return {"codes": arrays["CB"].view(np.uint8), "scales": arrays["SCB"][:, None]}


@ops.part("decode", "llm-int8")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]."""
    return as_grid(name).decode(fields["codes"], fields["scales"], None)
