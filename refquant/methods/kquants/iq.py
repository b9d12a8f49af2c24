"""IQ4_NL and IQ4_XS: four-bit codes for uneven values. Search a scale for each 32 weights, then take the nearest value.

IQ4_XS has one more step, the scales of its eight sub-blocks as integers -32..31 times one `d`. The largest gets -32.

Both choose the codes with the scale in float32, not with the float16 that is stored.

Weights of the squared error: x^2, or with importance `importance * sqrt(twice the mean of x^2 over the block + x^2)`,
the block being 32 weights in IQ4_NL and 256 in IQ4_XS.

Source: ggml-quants.c `quantize_row_iq4_nl_impl`, as `ggml_quantize_chunk` calls it.
Against other code: `quantize_row_iq4_nl_ref`, by which ggml quantizes on the fly, makes no trials: other bytes.
"""

import numpy as np

from refquant.casts import to_float16
from refquant.methods.kquants.arithmetic import f32, largest_magnitude, nearest, ordered_sum, reciprocal
from refquant.methods.kquants.blocks import per_block, search, to_blocks, to_rows, to_sub_blocks
from refquant.methods.kquants.scales import table_codes, table_scale


@search("IQ4_NL")
def iq4_nl(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, codes."""
    x, n = to_blocks(w, 32), len(w)
    weight = x * x
    if importance is not None:
        weight = to_blocks(importance, 32) * np.sqrt(ordered_sum(x * x) * f32(2 / 32) + x * x)
    scale = table_scale(x, weight)
    codes = table_codes(reciprocal(scale) * x)
    return {"d": per_block(to_float16(scale), n), "codes": to_rows(codes, n, np.uint8)}


@search("IQ4_XS")
def iq4_xs(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, scales int8, codes."""
    x, n = to_sub_blocks(w, 32), len(w)
    weight = x * x
    if importance is not None:
        whole = to_blocks(w, 256)
        weight = to_sub_blocks(importance, 32) * np.sqrt(ordered_sum(whole * whole) * f32(2 / 256) + x * x)
    scale = table_scale(x, weight)
    d = -largest_magnitude(scale) / f32(32)
    scales = np.clip(nearest(reciprocal(d) * scale), -32, 31)
    codes = table_codes(reciprocal(d * scales.astype(f32)) * x)
    return {
        "d": per_block(to_float16(d), n),
        "scales": per_block(scales, n, np.int8),
        "codes": to_rows(codes, n, np.uint8),
    }
