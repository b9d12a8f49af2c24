"""MXFP4: the scale is a power of two, from the largest magnitude, and each weight takes the nearest value.

    e - 127 = floor(log2(largest)) - 2

The largest E2M1 value, 6, has exponent 2; so the largest weight, brought to the same exponent, lies in [4, 8), and
clips when it is above 6 (a value of 7 rounds to 6). That is the rule of the OCP specification. ggml ignores the
importance.

Two details that bytes depend on. The logarithm is a float32 that rounds: a weight just below a power of two may count
as the power itself. And an exponent below 0 (largest weight below 2^-125) wraps around as a byte: such a block gets an
enormous scale, codes 0 throughout, and decodes to 0.

Source: ggml-quants.c `quantize_row_mxfp4_ref`, `best_index_mxfp4`.
Leaves out: NVFP4.
"""

import numpy as np

from refquant.codebooks import E2M1_DOUBLED, e8m0_half
from refquant.methods.kquants.arithmetic import as_byte, f32
from refquant.methods.kquants.blocks import per_block, search, to_blocks, to_rows


@search("MXFP4")
def mxfp4(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields e, codes."""
    x, n = to_blocks(w, 32), len(w)
    peak = np.abs(x).max(axis=0)
    log2 = np.log2(peak.astype(np.float64)).astype(f32)  # correctly rounded, as the C library's float32 log2 is here
    e = np.where(peak > 0, as_byte(np.floor(np.where(peak > 0, log2, f32(0))).astype(np.int32) - 2 + 127), 0)
    scale = e8m0_half(e)
    codes = np.zeros(x.shape, np.uint8)
    least = np.abs(x)
    for code in range(1, 16):
        error = np.abs(f32(E2M1_DOUBLED[code]) * scale - x)
        codes, least = np.where(error < least, np.uint8(code), codes), np.where(error < least, error, least)
    return {"e": per_block(e, n, np.uint8), "codes": to_rows(codes, n, np.uint8)}
