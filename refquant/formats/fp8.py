"""FP8 weights as checkpoints hold them: one byte a weight, and the scales, which multiply.

A matrix [n, k], in compressed-tensors' `float-quantized` and in DeepSeek's format::

    array              dtype      shape                            in
    weight             uint8      [n, k]                           all; the bits of the float8 that the file declares
    weight_scale       float32    [n, 1]                           fp8-e4m3
    weight_scale       float32    [1]                              fp8-e4m3-tensor
    weight_scale_inv   float32    [ceil(n / 128), ceil(k / 128)]   fp8-e4m3-block

    E4M3  bit 7  6  5  4  3  2  1  0      E5M2  bit 7  6  5  4  3  2  1  0
              s [   e    ] [   f  ]                 s [     e     ] [ f ]

Bits per weight: 8 + 32 / k, 8, 8 + 32 / 128^2. NumPy has no float8, so `weight` is its bits; a view as
`ml_dtypes.float8_e4m3fn` or `torch.float8_e4m3fn` costs nothing. Random bytes are legal: 0x7F and 0xFF are NaN (E4M3).

Leaves out: scales in float16 or bfloat16; the scales of activations.
"""

import numpy as np

from refquant import ops
from refquant.grids import as_grid
from refquant.quantized import Format, register_family

_SCALE = {"": "weight_scale", "tensor": "weight_scale", "block": "weight_scale_inv"}


def _shared(name: str) -> str:
    """Return "", "tensor" or "block"."""
    return name.split("-")[2] if name.count("-") == 2 else ""


def describe(name: str) -> Format:
    """Return the `Format` of an `fp8-` name."""
    shared = _shared(name)

    def layout(n, k):
        size = as_grid(name).group_size
        dims = {"": (n, 1), "tensor": (1,), "block": (-(-n // (size or n)), -(-k // (size or k)))}[shared]
        return {"weight": ((n, k), ("uint8",)), _SCALE[shared]: (dims, ("float32",))}

    return Format(name, "fp8", layout)


register_family(
    r"fp8-(?:e4m3|e5m2|e4m3fnuz|e5m2fnuz)(?:-tensor|-block)?",
    describe,
    ("fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block", "fp8-e5m2"),
)


@ops.part("pack", "fp8")
def pack(fields: dict, name: str) -> dict:
    """Lay out codes uint8 [n, k] and scales float32 [n, G], in which rows that share a scale repeat it."""
    rows = as_grid(name).rows
    scales = fields["scales"][:: rows or len(fields["scales"])].astype(np.float32)
    shared = _shared(name)
    return {"weight": fields["codes"], _SCALE[shared]: scales[0] if shared == "tensor" else scales}


@ops.part("unpack", "fp8")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return codes uint8 [n, k] and scales float32 [n, G]."""
    scales = np.atleast_2d(arrays[_SCALE[_shared(name)]])
    return {"codes": arrays["weight"], "scales": np.repeat(scales, as_grid(name).rows or shape[0], axis=0)[: shape[0]]}


@ops.part("decode", "fp8")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]."""
    grid = as_grid(name)
    return grid.decode(fields["codes"], fields["scales"][:, grid.group_index(fields["codes"].shape[1])], None)
