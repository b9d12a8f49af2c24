"""TQ1_0 and TQ2_0: 256 weights -d, 0 or +d, for models trained that way (BitNet b1.58, TriLM).

Three levels need log2(3) = 1.585 bits. TQ2_0 spends 2 and is quick to read; TQ1_0 packs five trits in a byte, since
3^5 = 243 fits 256, and spends 1.6.

Fields: `d` float16 [n, blocks]; `codes` uint8 [n, k], 0, 1, 2 for -1, 0, +1.

Source: ggml-common.h `block_tq1_0`, `block_tq2_0`; ggml-quants.c `dequantize_row_tq1_0`, `..._tq2_0`.
"""

import numpy as np

from refquant import ops
from refquant.casts import from_float16
from refquant.errors import BadInput
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

WEIGHTS = 256

# ---- TQ1_0: 1.6875 bits a weight
#
#     offset  bytes  field
#          0     48  qs  240 trits, five to a byte: bytes 0..31 hold codes 0..159, bytes 32..47 codes 160..239
#         48      4  qh  16 trits, four to a byte: codes 240..255
#         52      2  d   f2
#
# Within a run of `width` bytes the trits lie in planes, as the bits do elsewhere: byte m holds codes m, m + width,
# m + 2 width ... A byte is a fixed-point fraction in base 3: with the first code in the most significant place,
#
#     v = code_0 * 81 + code_1 * 27 + code_2 * 9 + code_3 * 3 + code_4           0..242
#     byte = ceil(v * 256 / 243)                                                  byte / 256 is just above v / 243
#
# so that trit t is read without a division: drop the places before it by a multiplication that overflows, and take the
# next one off the top: ((byte * 3^t mod 256) * 3) >> 8. The bytes of `qh` have a fifth place, 0. Thirteen byte values
# are never written; they decode all the same, and packing what they decode to gives another byte.

TQ1_0 = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])
assert TQ1_0.itemsize == 54
assert 8 * TQ1_0.itemsize / WEIGHTS == 1.6875
register("TQ1_0", WEIGHTS, TQ1_0)

RUNS = ((0, 32, 5), (32, 16, 5), (48, 4, 4))  # first byte, width, trits a byte
POWERS = 3 ** np.arange(5)


@ops.part("pack", "TQ1_0")
def pack_tq1_0(fields: dict, name: str) -> dict:
    """Lay out d and codes 0..2."""
    codes, start, parts = in_blocks(fields["codes"], WEIGHTS), 0, []
    if codes.max() > 2:
        raise BadInput(f"TQ1_0: codes must lie in 0..2, got {codes.max()}")
    for _, width, trits in RUNS:
        run = codes[..., start : start + width * trits].reshape(*codes.shape[:2], trits, width)
        value = np.sum(run * POWERS[::-1][:trits, None], axis=-2)  # 0..242
        parts.append((value * 256 + 242) // 243)
        start += width * trits
    data = np.concatenate(parts, axis=-1).astype(np.uint8)
    return as_bytes(TQ1_0, d=fields["d"], qs=data[..., :48], qh=data[..., 48:])


@ops.part("unpack", "TQ1_0")
def unpack_tq1_0(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d and codes 0..2."""
    block = records(arrays, TQ1_0)
    data, parts = np.concatenate([block["qs"], block["qh"]], axis=-1), []
    for start, width, trits in RUNS:
        run = data[..., None, start : start + width].astype(np.uint16)
        rest = run * POWERS[:trits, None].astype(np.uint16) & 255
        parts.append((rest * 3 >> 8).reshape(*data.shape[:2], -1))
    return {"d": block["d"], "codes": in_rows(np.concatenate(parts, axis=-1)).astype(np.uint8)}


# ---- TQ2_0: 2.0625 bits a weight
#
#     offset  bytes  field
#          0     64  qs  256 codes of 2 bits in planes of 32, as in Q2_K
#         64      2  d   f2
#
# Code 3 is never written and decodes to 2 d.

TQ2_0 = np.dtype([("qs", "u1", 64), ("d", "<f2")])
assert TQ2_0.itemsize == 66
assert 8 * TQ2_0.itemsize / WEIGHTS == 2.0625
register("TQ2_0", WEIGHTS, TQ2_0)


@ops.part("pack", "TQ2_0")
def pack_tq2_0(fields: dict, name: str) -> dict:
    """Lay out d and codes 0..3."""
    return as_bytes(TQ2_0, d=fields["d"], qs=pack_planes(in_blocks(fields["codes"], WEIGHTS), 2, width=32))


@ops.part("unpack", "TQ2_0")
def unpack_tq2_0(arrays: dict, name: str, shape: tuple[int, int]) -> dict:
    """Return d and codes 0..3."""
    block = records(arrays, TQ2_0)
    return {"d": block["d"], "codes": in_rows(unpack_planes(block["qs"], 2, width=32))}


@ops.part("decode", "TQ1_0", "TQ2_0")
def decode(fields: dict, name: str) -> np.ndarray:
    """Weights, float32 [n, k]: (code - 1) * d."""
    return scaled(fields["codes"].astype(np.int8) - np.int8(1), from_float16(fields["d"]))
