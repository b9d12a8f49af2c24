"""MXFP4: the OCP microscaling format. 32 weights of four-bit floating point, one power of two as their scale.

A code is an E2M1 number: a sign, two exponent bits, one fraction bit. The scale is E8M0: an exponent and nothing else::

    code    0  1    2  3    4  5  6  7     8   9    10  11   12  13  14  15
    value   0  0.5  1  1.5  2  3  4  6    -0  -0.5  -1  -1.5 -2  -3  -4  -6          [s|ee|f]

    scale = 2^(e - 127)

ggml keeps the doubled values (0 1 2 3 4 6 8 12), which are integers, and halves the scale; the product is the same.
Code 8 decodes to +0, because an integer 0 has no sign; e = 255, a NaN by the standard, decodes as the power of two that
it would be (with the half taken, 2^127). The standard's e = 0 is 2^-127, a subnormal float32.

Fields: `e` uint8 [n, blocks]; `codes` uint8 [n, k].

Source: OCP Microscaling Formats (MX) v1.0, table 1; ggml-common.h `block_mxfp4`, ggml-impl.h `ggml_e8m0_to_fp32_half`.
"""

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1_DOUBLED, e8m0_half
from refquant.formats.gguf_blocks.blocks import (
    as_bytes,
    in_blocks,
    in_rows,
    pack_planes,
    records,
    register,
    scaled,
    unpack_planes,
)

WEIGHTS = 32

# ---- MXFP4: 4.25 bits a weight
#
#     offset  bytes  field
#          0      1  e   scale, E8M0
#          1     16  qs  32 codes of 4 bits in planes of 16, as in Q4_0

MXFP4 = np.dtype([("e", "u1"), ("qs", "u1", 16)])
assert MXFP4.itemsize == 17
assert 8 * MXFP4.itemsize / WEIGHTS == 4.25
register("MXFP4", WEIGHTS, MXFP4)


@ops.part("pack", "MXFP4")
def pack(fields: dict, name: str) -> dict:
    """Lay out e and codes of 4 bits."""
    return as_bytes(MXFP4, e=fields["e"], qs=pack_planes(in_blocks(fields["codes"], WEIGHTS), 4, width=16))


@ops.part("unpack", "MXFP4")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return e and codes."""
    block = records(arrays, MXFP4)
    return {"e": block["e"], "codes": in_rows(unpack_planes(block["qs"], 4, width=16))}


@ops.part("decode", "MXFP4")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: doubled value * half scale."""
    return scaled(E2M1_DOUBLED[fields["codes"]], e8m0_half(fields["e"]))
