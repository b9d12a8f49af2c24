"""Q4_0 Q4_1 Q5_0 Q5_1 Q8_0: the first formats of ggml. 32 weights, one float16 scale, perhaps one float16 minimum.

The name says it: `Q<bits>_0` is symmetric, x = d * (code - 2^(bits-1)); `Q<bits>_1` has a minimum, x = d * code + m.
There is one level of scales, so 16 or 32 bits of every block go to them: half a bit, or a whole bit, a weight.

Fields of all five: `d` float16 [n, blocks]; `m` float16 [n, blocks] where there is one; `codes` [n, k], as stored:
uint8, but int8 in Q8_0.

Source: ggml-common.h `block_q4_0` ... `block_q8_0`; ggml-quants.c `dequantize_row_q4_0` ...
"""

import numpy as np

from refquant import ops
from refquant.casts import from_float16
from refquant.formats.bits import pack_bits, unpack_bits
from refquant.formats.gguf_blocks.blocks import (
    as_bytes,
    in_blocks,
    in_rows,
    pack_planes,
    records,
    register,
    scaled,
    unpack_planes,
    unsigned,
)

WEIGHTS = 32

# ---- Q4_0: 4.5 bits a weight
#
#     offset  bytes  field
#          0      2  d      f2, scale
#          2     16  qs     32 codes of 4 bits in planes of 16: byte j = [code j+16 | code j]
#
# x = (code - 8) * d. The stored code is excess-8, not two's complement: code 8 is the zero.

Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
assert Q4_0.itemsize == 18
assert 8 * Q4_0.itemsize / WEIGHTS == 4.5

# ---- Q4_1: 5 bits a weight
#
#     offset  bytes  field
#          0      2  d      f2, scale
#          2      2  m      f2, minimum
#          4     16  qs     as in Q4_0
#
# x = code * d + m

Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
assert Q4_1.itemsize == 20
assert 8 * Q4_1.itemsize / WEIGHTS == 5.0

# ---- Q5_0: 5.5 bits a weight
#
#     offset  bytes  field
#          0      2  d      f2, scale
#          2      4  qh     bit 4 of each code: one bit a code, in order, code j in bit j % 8 of byte j // 8
#          6     16  qs     bits 3..0 of each code, as in Q4_0
#
# x = (code - 16) * d. The fifth bits lie together as one 32-bit word, so the nibbles keep Q4_0's layout.

Q5_0 = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
assert Q5_0.itemsize == 22
assert 8 * Q5_0.itemsize / WEIGHTS == 5.5

# ---- Q5_1: 6 bits a weight. Q5_0 with a minimum at offset 2; x = code * d + m

Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
assert Q5_1.itemsize == 24
assert 8 * Q5_1.itemsize / WEIGHTS == 6.0

# ---- Q8_0: 8.5 bits a weight
#
#     offset  bytes  field
#          0      2  d      f2, scale
#          2     32  qs     i1, one code a byte
#
# x = code * d. The encoder uses -127..127; -128 is legal to read.

Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
assert Q8_0.itemsize == 34
assert 8 * Q8_0.itemsize / WEIGHTS == 8.5

BLOCKS = {"Q4_0": Q4_0, "Q4_1": Q4_1, "Q5_0": Q5_0, "Q5_1": Q5_1, "Q8_0": Q8_0}
for _name, _block in BLOCKS.items():
    register(_name, WEIGHTS, _block)


@ops.part("pack", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
def pack(fields: dict, name: str) -> dict:
    """Lay out codes [n, k] of 4 or 5 bits, `d` and perhaps `m` [n, blocks]."""
    block, codes = BLOCKS[name], in_blocks(fields["codes"], WEIGHTS)
    parts = {field: fields[field] for field in ("d", "m") if field in block.names}
    if "qh" in block.names:
        codes = unsigned(codes, 5)
        parts["qh"], codes = pack_bits(codes >> 4, 1), codes & 15
    return as_bytes(block, **parts, qs=pack_planes(codes, 4, width=16))


@ops.part("unpack", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
def unpack(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return `d`, perhaps `m`, and the codes uint8 [n, k]."""
    block = records(arrays, BLOCKS[name])
    codes = unpack_planes(block["qs"], 4, width=16)
    if "qh" in block.dtype.names:
        codes |= unpack_bits(block["qh"], 1, WEIGHTS) << 4
    return {field: block[field] for field in ("d", "m") if field in block.dtype.names} | {"codes": in_rows(codes)}


@ops.part("decode", "Q4_0", "Q5_0")
def decode_symmetric(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: (code - 8) * d, or (code - 16) * d."""
    middle = {"Q4_0": 8, "Q5_0": 16}[name]
    return scaled(fields["codes"].astype(np.int8) - np.int8(middle), from_float16(fields["d"]))


@ops.part("decode", "Q4_1", "Q5_1")
def decode_with_minimum(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: (code * d) + m, two roundings."""
    product = in_blocks(scaled(fields["codes"], from_float16(fields["d"])), WEIGHTS)
    with np.errstate(all="ignore"):
        return in_rows(product + from_float16(fields["m"])[..., None])


@ops.part("pack", "Q8_0")
def pack_q8_0(fields: dict, name: str) -> dict:
    """Lay out codes int8 [n, k] and `d` [n, blocks]."""
    return as_bytes(Q8_0, d=fields["d"], qs=in_blocks(fields["codes"], WEIGHTS))


@ops.part("unpack", "Q8_0")
def unpack_q8_0(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return `d` and the codes int8 [n, k]."""
    block = records(arrays, Q8_0)
    return {"d": block["d"], "codes": in_rows(block["qs"])}


@ops.part("decode", "Q8_0")
def decode_q8_0(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: code * d."""
    return scaled(fields["codes"], from_float16(fields["d"]))
