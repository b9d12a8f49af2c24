"""Q2_K Q3_K Q4_K Q5_K Q6_K: the k-quants. Blocks of 256 weights, in sub-blocks of 16 or 32 with their own scales.

Why two levels: a scale for every 16 weights follows the weights closely, but as a float16 it costs a whole bit a
weight. So the sub-blocks' scales are quantized themselves, to 4, 6 or 8 bits, and one float16 `d` a block scales the
scales::

    scale of sub-block j = d * scales[j]              4 + 16/16 bits would be 5; Q6_K pays 8/16 + 16/256 = 0.5625

Q2_K, Q4_K and Q5_K do the same for a minimum (`dmin * mins[j]`, subtracted, so never negative by itself): with few
codes, a sub-block that does not lie around zero would waste half of them. Q3_K and Q6_K are symmetric and have signed
scales.

::

    format  sub-blocks  codes   scales          mins    d, dmin   bytes  bits a weight
    Q2_K    16 of 16    2 bits  4 bits          4 bits  32 bits     84      2.625
    Q3_K    16 of 16    3 bits  6 bits signed     -     16 bits    110      3.4375
    Q4_K     8 of 32    4 bits  6 bits          6 bits  32 bits    144      4.5
    Q5_K     8 of 32    5 bits  6 bits          6 bits  32 bits    176      5.5
    Q6_K    16 of 16    6 bits  8 bits signed     -     16 bits    210      6.5625

Fields: `d`, `dmin` float16 [n, blocks]; `scales`, `mins` [n, blocks, sub-blocks], uint8 where unsigned, int8 where
signed; `codes` uint8 [n, k], as stored (4 or 32 above the signed value in Q3_K and Q6_K).

Source: ggml-common.h `block_q2_K` ... `block_q6_K`; ggml-quants.c `dequantize_row_q2_K` ..., `get_scale_min_k4`.
"""

import numpy as np

from refquant import ops
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

WEIGHTS = 256

# ---- Q2_K
#
#     offset  bytes  field
#          0     16  scales  byte j = [mins[j] | scales[j]], 4 bits each
#         16     64  qs      256 codes of 2 bits in planes of 32 (four planes in 32 bytes, then again)
#         80      2  d       f2
#         82      2  dmin    f2

Q2_K = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])
assert Q2_K.itemsize == 84
assert 8 * Q2_K.itemsize / WEIGHTS == 2.625
register("Q2_K", WEIGHTS, Q2_K)


@ops.part("pack", "Q2_K")
def pack_q2_k(fields: dict, name: str) -> dict:
    """Lay out d, dmin, scales and mins of 4 bits, codes of 2 bits."""
    scales = unsigned(fields["scales"], 4) | unsigned(fields["mins"], 4) << 4
    codes = in_blocks(fields["codes"], WEIGHTS)
    return as_bytes(Q2_K, d=fields["d"], dmin=fields["dmin"], scales=scales, qs=pack_planes(codes, 2, width=32))


@ops.part("unpack", "Q2_K")
def unpack_q2_k(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d, dmin, scales, mins, codes."""
    block = records(arrays, Q2_K)
    return {
        "d": block["d"],
        "dmin": block["dmin"],
        "scales": block["scales"] & 15,
        "mins": block["scales"] >> 4,
        "codes": in_rows(unpack_planes(block["qs"], 2, width=32)),
    }


@ops.part("decode", "Q2_K", "Q4_K", "Q5_K")
def decode_with_minimum(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: ((d * scale) * code) - (dmin * min), four roundings."""
    step = product(fields["d"], fields["scales"])
    return scaled(fields["codes"], step, minimum=product(fields["dmin"], fields["mins"]))


# ---- Q3_K
#
#     offset  bytes  field
#          0     32  hmask   bit 2 of each code: 256 codes of 1 bit in planes of 32
#         32     64  qs      bits 1..0 of each code, in planes of 32, as in Q2_K
#         96     12  scales  16 scales of 6 bits, stored 32 above their value:
#                              bytes 0..7   bits 3..0 of the scales, planes of 8:  byte j   = [scale j+8 | scale j]
#                              bytes 8..11  bits 5..4 of the scales, planes of 4:  byte 8+j = [j+12 | j+8 | j+4 | j]
#        108      2  d       f2
#
# x = (d * scale) * (code - 4). In ggml's words the mask bit means "do not subtract 4"; that is bit 2 of the code.

Q3_K = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])
assert Q3_K.itemsize == 110
assert 8 * Q3_K.itemsize / WEIGHTS == 3.4375
register("Q3_K", WEIGHTS, Q3_K)


@ops.part("pack", "Q3_K")
def pack_q3_k(fields: dict, name: str) -> dict:
    """Lay out d, signed scales of 6 bits, codes of 3 bits."""
    codes = unsigned(in_blocks(fields["codes"], WEIGHTS), 3)
    scales = unsigned(fields["scales"].astype(np.int16) + 32, 6)
    low, high = pack_planes(scales & 15, 4, width=8), pack_planes(scales >> 4, 2, width=4)
    return as_bytes(
        Q3_K,
        d=fields["d"],
        scales=np.concatenate([low, high], axis=-1),
        hmask=pack_planes(codes >> 2, 1, width=32),
        qs=pack_planes(codes & 3, 2, width=32),
    )


@ops.part("unpack", "Q3_K")
def unpack_q3_k(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d, scales int8 in -32..31, codes in 0..7."""
    block = records(arrays, Q3_K)
    low, high = unpack_planes(block["scales"][..., :8], 4, width=8), unpack_planes(block["scales"][..., 8:], 2, width=4)
    codes = unpack_planes(block["qs"], 2, width=32) | unpack_planes(block["hmask"], 1, width=32) << 2
    return {"d": block["d"], "scales": (low | high << 4).astype(np.int8) - np.int8(32), "codes": in_rows(codes)}


@ops.part("decode", "Q3_K", "Q6_K")
def decode_symmetric(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: (d * scale) * (code - 4), or (code - 32) in Q6_K."""
    middle = {"Q3_K": 4, "Q6_K": 32}[name]
    return scaled(fields["codes"].astype(np.int8) - np.int8(middle), product(fields["d"], fields["scales"]))


# ---- Q4_K and Q5_K
#
#     offset  bytes  field                              offset  bytes  field
#          0      2  d       f2                              0      2  d       f2
#          2      2  dmin    f2                              2      2  dmin    f2
#          4     12  scales  see below                       4     12  scales  see below
#         16    128  qs      256 codes of 4 bits,           16     32  qh      bit 4 of each code, planes of 32
#                            planes of 32                   48    128  qs      bits 3..0 of each code, planes of 32
#
# The 8 scales and 8 mins of 6 bits: the first four of each have a byte of their own, and the two bits that this leaves
# free hold the top of a later one. Scales and mins 4..7 keep their lower four bits together in a byte:
#
#     bit            7      6      5      4      3      2      1      0
#     byte j        [ scale j+4  ][             scale j                ]      j = 0..3
#                    bits 5..4                 bits 5..0
#     byte 4 + j    [  min j+4   ][              min j                 ]
#     byte 8 + j    [  min j+4, bits 3..0     ][  scale j+4, bits 3..0 ]

Q4_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)])
Q5_K = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)])
assert Q4_K.itemsize == 144
assert Q5_K.itemsize == 176
assert 8 * Q4_K.itemsize / WEIGHTS == 4.5
assert 8 * Q5_K.itemsize / WEIGHTS == 5.5
BLOCKS = {"Q4_K": Q4_K, "Q5_K": Q5_K}
for _name, _block in BLOCKS.items():
    register(_name, WEIGHTS, _block)


def pack_six_bits(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """Bytes uint8 [..., 12] of 8 scales and 8 mins [..., 8], each below 64."""
    scales, mins = unsigned(scales, 6), unsigned(mins, 6)
    first_scales, last_scales = scales[..., :4], scales[..., 4:]
    first_mins, last_mins = mins[..., :4], mins[..., 4:]
    return np.concatenate(
        [
            first_scales | last_scales >> 4 << 6,
            first_mins | last_mins >> 4 << 6,
            last_scales & 15 | last_mins << 4,
        ],
        axis=-1,
    )


def unpack_six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and mins, uint8 [..., 8] each, from bytes uint8 [..., 12]."""
    own_scales, own_mins, shared = data[..., :4], data[..., 4:8], data[..., 8:]
    scales = [own_scales & 63, shared & 15 | own_scales >> 6 << 4]
    mins = [own_mins & 63, shared >> 4 | own_mins >> 6 << 4]
    return np.concatenate(scales, axis=-1), np.concatenate(mins, axis=-1)


@ops.part("pack", "Q4_K", "Q5_K")
def pack_q4_k(fields: dict, name: str) -> dict:
    """Lay out d, dmin, scales and mins of 6 bits, codes of 4 or 5 bits."""
    codes = in_blocks(fields["codes"], WEIGHTS)
    parts = {"d": fields["d"], "dmin": fields["dmin"], "scales": pack_six_bits(fields["scales"], fields["mins"])}
    if name == "Q5_K":
        codes = unsigned(codes, 5)
        parts["qh"], codes = pack_planes(codes >> 4, 1, width=32), codes & 15
    return as_bytes(BLOCKS[name], **parts, qs=pack_planes(codes, 4, width=32))


@ops.part("unpack", "Q4_K", "Q5_K")
def unpack_q4_k(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d, dmin, scales, mins, codes."""
    block = records(arrays, BLOCKS[name])
    scales, mins = unpack_six_bits(block["scales"])
    codes = unpack_planes(block["qs"], 4, width=32)
    if name == "Q5_K":
        codes |= unpack_planes(block["qh"], 1, width=32) << 4
    return {"d": block["d"], "dmin": block["dmin"], "scales": scales, "mins": mins, "codes": in_rows(codes)}


# ---- Q6_K
#
#     offset  bytes  field
#          0    128  ql      bits 3..0 of each code: 256 codes of 4 bits in planes of 64
#        128     64  qh      bits 5..4 of each code: 256 codes of 2 bits in planes of 32
#        192     16  scales  i1
#        208      2  d       f2
#
# x = (d * scale) * (code - 32)

Q6_K = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])
assert Q6_K.itemsize == 210
assert 8 * Q6_K.itemsize / WEIGHTS == 6.5625
register("Q6_K", WEIGHTS, Q6_K)


@ops.part("pack", "Q6_K")
def pack_q6_k(fields: dict, name: str) -> dict:
    """Lay out d, scales int8, codes of 6 bits."""
    codes = unsigned(in_blocks(fields["codes"], WEIGHTS), 6)
    low, high = pack_planes(codes & 15, 4, width=64), pack_planes(codes >> 4, 2, width=32)
    return as_bytes(Q6_K, d=fields["d"], scales=fields["scales"], ql=low, qh=high)


@ops.part("unpack", "Q6_K")
def unpack_q6_k(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d, scales int8, codes in 0..63."""
    block = records(arrays, Q6_K)
    codes = unpack_planes(block["ql"], 4, width=64) | unpack_planes(block["qh"], 2, width=32) << 4
    return {"d": block["d"], "scales": block["scales"], "codes": in_rows(codes)}
