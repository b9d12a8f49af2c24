"""TQ1_0 and TQ2_0: the scale is the largest magnitude of 256 weights, and each weight becomes -1, 0 or +1 times it.

Meant for models trained with three values, where it loses nothing. For others it is a poor rule: with one large weight
in the block, all below half of it become 0. ggml has no search and ignores the importance.

Source: ggml-quants.c `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`: the same numbers in two layouts.
"""

import numpy as np

from refquant.casts import to_float16
from refquant.methods.kquants.arithmetic import f32, reciprocal, round_half_away, truncated
from refquant.methods.kquants.blocks import per_block, search, to_blocks, to_rows


@search("TQ1_0")
@search("TQ2_0")
def ternary(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, codes 0..2."""
    x, n = to_blocks(w, 256), len(w)
    d = np.abs(x).max(axis=0) + f32(0)
    codes = truncated(round_half_away(x * reciprocal(d))) + np.int8(1)
    return {"d": per_block(to_float16(d), n), "codes": to_rows(codes, n, np.uint8)}
