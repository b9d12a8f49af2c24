"""NF4 as bitsandbytes' files hold it: `nf4`, `nf4-dq` (double quantization), `nf4-b<block>`, `nf4-b<block>-dq`.

A matrix [n, k] of c = n k weights in blocks of b (64 unless named), B = ceil(c / b) blocks, through the flattened
matrix: a block may end in the next row. The tensors of a file are called `<weight>`, `<weight>.absmax` and so on::

    array              dtype     shape               meaning
    weight             uint8     [ceil(c / 2), 1]    two codes a byte, the first in the HIGH half
    quant_map          float32   [16]                value of each code
    absmax             float32   [B]                 scale of each block                                   not in -dq
    absmax             uint8     [B]                 its code                                              -dq
    nested_absmax      float32   [ceil(B / 256)]     scale of 256 of them                                  -dq
    nested_quant_map   float32   [256]               value of each of their codes                          -dq
    nested_offset      float32   []                  added to all of them; in a file, in its JSON          -dq

    byte i   bit 7  6  5  4 | 3  2  1  0
                 code 2i    |  code 2i+1          the last code of an odd count is followed by code 7 (0.0)

    weight = quant_map[code] * scale,   scale = absmax, or nested_quant_map[absmax] * nested_absmax + nested_offset

Bits per weight of a large matrix: 4 + 32 / 64 = 4.5; with -dq 4 + 8 / 64 + 32 / (64 * 256) = 4.127. The maps add 64 and
1088 bytes to each matrix.

Leaves out: the JSON of a file (`bitsandbytes__nf4`: block sizes, dtype, shape, offset), FP4.
"""

import numpy as np

from refquant import ops
from refquant.formats.bits import pack_bits, unpack_bits
from refquant.grids import as_grid
from refquant.quantized import Format, register_family

NESTED_BLOCK = 256
ZERO_CODE = 7


def describe(name: str) -> Format:
    """Return the `Format` of an `nf4` name."""

    def layout(n, k):
        grid = as_grid(name)
        blocks = -(-n * k // grid.group_size)
        arrays = {
            "weight": ((-(-n * k // 2), 1), ("uint8",)),
            "quant_map": ((16,), ("float32",)),
            "absmax": ((blocks,), ("uint8" if grid.nested else "float32",)),
        }
        if grid.nested:
            arrays["nested_absmax"] = ((-(-blocks // NESTED_BLOCK),), ("float32",))
            arrays["nested_quant_map"] = ((256,), ("float32",))
            arrays["nested_offset"] = ((), ("float32",))
        return arrays

    return Format(name, "nf4", layout)


register_family(r"nf4(?:-b(?:32|128|256|512|1024|2048|4096))?(?:-dq)?", describe, ("nf4", "nf4-dq"))


@ops.part("pack", "nf4")
def pack(fields: dict, name: str) -> dict:
    """Pack codes [n, k]; the other fields are arrays of the file already."""
    codes = fields["codes"].ravel()
    codes = np.append(codes, np.full(codes.size % 2, ZERO_CODE, codes.dtype))
    arrays = {key: value for key, value in fields.items() if key != "codes"}
    return arrays | {"weight": pack_bits(codes.reshape(-1, 2)[:, ::-1], 4)}


@ops.part("unpack", "nf4")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return codes uint8 [n, k] and the other arrays."""
    pairs = unpack_bits(arrays["weight"], 4, 2)[:, ::-1]
    return {k: v for k, v in arrays.items() if k != "weight"} | {
        "codes": pairs.ravel()[: shape[0] * shape[1]].reshape(shape)
    }


@ops.part("decode", "nf4")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]."""
    codes, scale = fields["codes"], fields["absmax"]
    if as_grid(name).nested:
        nested = np.repeat(fields["nested_absmax"], NESTED_BLOCK)[: len(scale)]
        scale = fields["nested_quant_map"][scale] * nested + fields["nested_offset"]
    scale = np.repeat(scale, as_grid(name).group_size)[: codes.size]
    return fields["quant_map"][codes] * scale.reshape(codes.shape)
