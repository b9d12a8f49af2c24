"""Q4_0 Q4_1 Q5_0 Q5_1 Q8_0: the simplest rules, without a search unless there is an importance.

Without importance the scale follows from the extremes of the block, and each weight is rounded by itself::

    Q4_0 Q5_0   d = extreme / -8 (or -16), extreme the weight of largest magnitude, with its sign
                code = x / d + 8.5, cut off, at most 15            16.5 and 31 in Q5_0
    Q4_1 Q5_1   m = smallest, d = (largest - m) / 15 (or 31)       code = (x - m) / d + 0.5, cut off, at most 15
    Q8_0        d = largest magnitude / 127                        code = x / d, rounded half away from zero

Why divide by -8: the codes 0..15 stand for -8..7, so one end reaches farther. The largest weight gets that end,
whatever its sign is; d is then negative for a positive one.

Division by d is a multiplication by 1/d of d in float32; d is rounded to float16 only to be stored. The k-quants take
more care: they choose codes with the d that the file holds.

With importance the searches of `scales` run on blocks of 32. A weight's squared error counts

    importance * sqrt(mean of x^2 over the whole row + x^2)

so that large weights count more, though not as much as by x^2 alone. Q8_0 ignores the importance, as ggml does: at 8
bits there is nothing to gain.

Against other code: gguf-py's Python encoders round these formats without importance to the same bytes.
"""

import numpy as np

from refquant.casts import to_float16
from refquant.methods.kquants.arithmetic import (
    f32,
    highest,
    largest_magnitude,
    lowest,
    ordered_sum,
    reciprocal,
    round_half_away,
    truncated,
)
from refquant.methods.kquants.blocks import per_block, search, to_blocks, to_rows
from refquant.methods.kquants.scales import scale_and_min, symmetric_scale


def symmetric(w: np.ndarray, importance: np.ndarray | None, middle: int) -> dict:
    """Fields of Q4_0 (middle 8) and Q5_0 (16). ggml's `quantize_row_q4_0_ref`, `quantize_row_q4_0_impl`."""
    x = to_blocks(w, 32)
    if importance is None:
        d = largest_magnitude(x) / f32(-middle)
        codes = np.minimum(truncated(x * reciprocal(d) + f32(middle + 0.5)), 2 * middle - 1)
    else:
        codes, d = symmetric_scale(x, row_weights(w, importance), middle)
    return {"d": per_block(to_float16(d), len(w)), "codes": to_rows(codes, len(w), np.uint8)}


def with_minimum(w: np.ndarray, importance: np.ndarray | None, top: int) -> dict:
    """Fields of Q4_1 (top 15) and Q5_1 (31). ggml's `quantize_row_q4_1_ref`, `quantize_row_q4_1_impl`."""
    x = to_blocks(w, 32)
    if importance is None:
        m = lowest(x)
        d = (highest(x) - m) / f32(top)
        codes = np.minimum(truncated((x - m) * reciprocal(d) + f32(0.5)), top)
    else:
        codes, d, m = scale_and_min(x, row_weights(w, importance), top, first=-0.9, step=0.05, steps=36)
    n = len(w)
    return {
        "d": per_block(to_float16(d), n),
        "m": per_block(to_float16(m), n),
        "codes": to_rows(codes, n, np.uint8),
    }


def row_weights(w: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Weight of each squared error, [32, blocks]; the mean of x^2 is taken over the whole row."""
    mean_square = ordered_sum((w * w).T) / f32(w.shape[1])  # [n]
    return to_blocks(importance * np.sqrt(mean_square[:, None] + w * w), 32)


@search("Q4_0")
def q4_0(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, codes."""
    return symmetric(w, importance, middle=8)


@search("Q5_0")
def q5_0(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, codes."""
    return symmetric(w, importance, middle=16)


@search("Q4_1")
def q4_1(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, m, codes."""
    return with_minimum(w, importance, top=15)


@search("Q5_1")
def q5_1(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, m, codes."""
    return with_minimum(w, importance, top=31)


@search("Q8_0")
def q8_0(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, codes int8. ggml's `quantize_row_q8_0_ref`."""
    x = to_blocks(w, 32)
    d = np.abs(x).max(axis=0) / f32(127)
    codes = truncated(round_half_away(x * reciprocal(d)))
    return {"d": per_block(to_float16(d), len(w)), "codes": to_rows(codes, len(w), np.int8)}
