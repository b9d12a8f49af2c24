"""IQ4_NL and IQ4_XS: four-bit codes that name one of 16 unevenly spaced values.

Trained weights crowd around zero, so an even grid spends codes on the rare large ones. Here the code is an index into
one fixed table, dense in the middle and sparse at the ends (`NL`: non-linear)::

    code    0    1    2    3    4    5    6    7   8   9  10  11  12  13  14   15
    value -127 -104  -83  -65  -49  -35  -22  -10  1  13  25  38  53  69  89  113

No entry is 0: a weight of zero decodes to 1/127 of the sub-block's largest. The table is lopsided, so scales have a
sign, and the search picks the better side.

Fields: `d` float16 [n, blocks]; `scales` int8 [n, blocks, 8] (IQ4_XS), -32..31; `codes` uint8 [n, k].

Source: ggml-common.h `block_iq4_nl`, `block_iq4_xs`, `kvalues_iq4nl`; ggml-quants.c `dequantize_row_iq4_nl`, `..._xs`.
Leaves out: the IQ1, IQ2 and IQ3 formats, whose codes are indices into large codebooks.
"""

import numpy as np

from refquant import ops
from refquant.casts import from_float16
from refquant.codebooks import IQ4_VALUES
from refquant.formats.bits import pack_bits, unpack_bits
from refquant.formats.gguf_blocks.blocks import (
    as_bytes,
    in_blocks,
    in_rows,
    pack_planes,
    product,
    records,
    register,
    scaled,
    unpack_planes,
    unsigned,
)

# ---- IQ4_NL: 4.5 bits a weight
#
#     offset  bytes  field
#          0      2  d   f2, scale
#          2     16  qs  32 codes of 4 bits in planes of 16, as in Q4_0
#
# x = d * value[code]

IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
assert IQ4_NL.itemsize == 18
assert 8 * IQ4_NL.itemsize / 32 == 4.5
register("IQ4_NL", 32, IQ4_NL)


@ops.part("pack", "IQ4_NL")
def pack_iq4_nl(fields: dict, name: str) -> dict:
    """Lay out d and codes of 4 bits."""
    return as_bytes(IQ4_NL, d=fields["d"], qs=pack_planes(in_blocks(fields["codes"], 32), 4, width=16))


@ops.part("unpack", "IQ4_NL")
def unpack_iq4_nl(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d and codes."""
    block = records(arrays, IQ4_NL)
    return {"d": block["d"], "codes": in_rows(unpack_planes(block["qs"], 4, width=16))}


@ops.part("decode", "IQ4_NL")
def decode_iq4_nl(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: d * value[code]."""
    return scaled(IQ4_VALUES[fields["codes"]], from_float16(fields["d"]))


# ---- IQ4_XS: 4.25 bits a weight. The same codes with the k-quants' two levels: 8 sub-blocks of 32
#
#     offset  bytes  field
#          0      2  d         f2
#          2      2  scales_h  bits 5..4 of the 8 scales, two bits each, in order: scale j in bits 2j+1..2j
#          4      4  scales_l  bits 3..0 of the 8 scales, in order: byte j = [scale 2j+1 | scale 2j]
#          8    128  qs        256 codes of 4 bits in planes of 16: every 32 weights as in IQ4_NL
#
# Scales are stored 32 above their value. x = (d * scale) * value[code]. Note the planes of 16: Q4_K's are of 32.

IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "u1", 2), ("scales_l", "u1", 4), ("qs", "u1", 128)])
assert IQ4_XS.itemsize == 136
assert 8 * IQ4_XS.itemsize / 256 == 4.25
register("IQ4_XS", 256, IQ4_XS)


@ops.part("pack", "IQ4_XS")
def pack_iq4_xs(fields: dict, name: str) -> dict:
    """Lay out d, signed scales of 6 bits, codes of 4 bits."""
    scales = unsigned(fields["scales"].astype(np.int16) + 32, 6)
    qs = pack_planes(in_blocks(fields["codes"], 256), 4, width=16)
    return as_bytes(
        IQ4_XS, d=fields["d"], scales_h=pack_bits(scales >> 4, 2), scales_l=pack_bits(scales & 15, 4), qs=qs
    )


@ops.part("unpack", "IQ4_XS")
def unpack_iq4_xs(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d, scales int8 in -32..31, codes."""
    block = records(arrays, IQ4_XS)
    scales = unpack_bits(block["scales_l"], 4, 8) | unpack_bits(block["scales_h"], 2, 8) << 4
    codes = unpack_planes(block["qs"], 4, width=16)
    return {"d": block["d"], "scales": scales.astype(np.int8) - np.int8(32), "codes": in_rows(codes)}


@ops.part("decode", "IQ4_XS")
def decode_iq4_xs(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: (d * scale) * value[code]."""
    return scaled(IQ4_VALUES[fields["codes"]], product(fields["d"], fields["scales"]))
