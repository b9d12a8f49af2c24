"""Q2_K Q3_K Q4_K Q5_K Q6_K: a scale (and minimum) for each sub-block; the scales quantized; the codes chosen again.

Three steps, the same for all five:

1. **Each sub-block by itself.** A search of `scales` finds the best float32 scale, and the minimum if there is one.
2. **The scales of the block.** The 8 or 16 scales become small integers, times one float16 `d`; the minima likewise,
   with `dmin`. Without importance the largest scale gets the last code and the others are rounded. With importance the
   scales are a little block of their own and are searched like one.
3. **The codes, once more.** What a sub-block gets is not the scale of step 1 but `d * scales[j]`, with d as the file
   holds it. So the codes are chosen again for that: `(x + dmin * mins[j]) / (d * scales[j])`, a true division, rounded
   half to even. Where the product is 0 the codes of step 1 stay; they decode to the minimum anyway.

Errors are weighted, so that what matters most is kept best. Without importance::

    Q2_K |x|, absolute error      Q3_K, Q6_K  x^2      Q4_K, Q5_K  |x| + root mean square of the sub-block

With importance, `importance * sqrt(s + x^2)`: s is the mean of x^2 over the block in Q2_K, twice that in Q3_K, Q4_K and
Q5_K. Q6_K takes the importance as it is. A zero importance means an error that costs nothing. Where a whole sub-block
has none, no trial is better than the first guess, which stays; its scale then counts nothing when the block's `d` is
chosen, and a block without any importance gets d = 0.

Source: ggml-quants.c `quantize_row_q2_K_ref`, `quantize_row_q2_K_impl` and so on for the others.
Against other code: a build with fused multiply-add (clang's default for arm64) was reported to differ in 0.2 % of the
bytes (llama.cpp issue 25353). libgguf 0.2.2 makes the same bytes, but for the case that `scale_and_min` names last.
"""

import numpy as np

from refquant.casts import from_float16, to_float16
from refquant.methods.kquants.arithmetic import EPS, as_byte, f32, largest_magnitude, nearest, ordered_sum
from refquant.methods.kquants.blocks import per_block, search, to_blocks, to_rows, to_sub_blocks
from refquant.methods.kquants.scales import (
    positive_scale,
    scale_and_min,
    symmetric_scale,
    symmetric_scale_by_descent,
)

# Shapes: x and weight [size, sub-blocks, blocks]; what belongs to a sub-block [sub-blocks, blocks]; d, dmin [blocks].


def error_weights(w: np.ndarray, importance: np.ndarray, size: int, factor: int) -> np.ndarray:
    """Return importance * sqrt(factor * mean of x^2 over the block + x^2), [size, sub-blocks, blocks]."""
    x = to_blocks(w, 256)
    mean_square = f32(factor) * ordered_sum(x * x) / f32(256)
    x, qw = to_sub_blocks(w, size), to_sub_blocks(importance, size)
    return qw * np.sqrt(mean_square + x * x)


def root_mean_square(x: np.ndarray) -> np.ndarray:
    """Of each sub-block."""
    return np.sqrt(ordered_sum(x * x) / f32(len(x)))


def by_largest(values: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers and float16 scale of values [sub-blocks, blocks] that are not negative: the largest gets `top`."""
    peak = np.fmax(values.max(axis=0), f32(0))
    inverse = np.where(peak > 0, f32(top) / peak, f32(0))
    return as_byte(nearest(inverse * values)), to_float16(peak / f32(top))


def by_extreme(values: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed integers and float16 scale of values [sub-blocks, blocks]: the one of largest magnitude gets `low`."""
    extreme = largest_magnitude(values)
    inverse = f32(low) / extreme
    integers = np.clip(nearest(inverse * values), low, high)
    zero = extreme == 0
    return np.where(zero, low, integers), np.where(zero, np.float16(0), to_float16(f32(1) / inverse))


def codes_for(x, step, codes, low, high, offset=None) -> np.ndarray:
    """Choose the codes for the step that the file holds; where that is 0, keep `codes`."""
    shifted = x if offset is None else x + offset
    return np.where(step == 0, codes, np.clip(nearest(shifted / step), low, high) - low)


def fields_with_minimum(w, x, codes, scales, mins, d, dmin) -> dict:
    """Step 3 and the fields of Q2_K, Q4_K and Q5_K."""
    n, top = len(w), codes[1]
    step, offset = from_float16(d) * scales.astype(f32), from_float16(dmin) * mins.astype(f32)
    final = codes_for(x, step, codes[0], 0, top, offset)
    return {
        "d": per_block(d, n),
        "dmin": per_block(dmin, n),
        "scales": per_block(scales, n, np.uint8),
        "mins": per_block(mins, n, np.uint8),
        "codes": to_rows(final, n, np.uint8),
    }


# ---- Q2_K: codes 0..3 in sub-blocks of 16; scales and mins 0..15


@search("Q2_K")
def q2_k(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, dmin, scales, mins, codes."""
    x = to_sub_blocks(w, 16)
    if importance is None:
        codes, scale, low = scale_and_min(x, np.abs(x), 3, first=-0.5, step=0.1, steps=15, absolute=True)
        scales, d = by_largest(scale, 15)
        mins, dmin = by_largest(-low, 15)
    else:
        weight = error_weights(w, importance, 16, factor=1)
        codes, scale, low = scale_and_min(x, weight, 3, first=-0.9, step=0.05, steps=36)
        total = ordered_sum(weight)
        scales, d = positive_scale(scale, total, 15)
        mins, dmin = positive_scale(-low, total, 15)
        d, dmin = to_float16(d), to_float16(dmin)
    # Scale and min share a byte. In ggml, too, a negative scale is a byte above 15 and runs over into its min.
    byte = as_byte(scales | mins << 4)
    return fields_with_minimum(w, x, (codes, 3), byte & 15, byte >> 4, d, dmin)


# ---- Q4_K, Q5_K: codes 0..15 or 0..31 in sub-blocks of 32; scales and mins 0..63


@search("Q4_K")
def q4_k(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, dmin, scales, mins, codes."""
    return q4_k_or_q5_k(w, importance, 15, first=-1.0, steps=20)


@search("Q5_K")
def q5_k(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, dmin, scales, mins, codes."""
    return q4_k_or_q5_k(w, importance, 31, first=-0.5, steps=15)


def q4_k_or_q5_k(w: np.ndarray, importance: np.ndarray | None, top: int, first: float, steps: int) -> dict:
    """The two differ in their number of codes, and in the trials without importance."""
    x = to_sub_blocks(w, 32)
    if importance is None:
        weight = root_mean_square(x) + np.abs(x)
        codes, scale, low = scale_and_min(x, weight, top, first=first, step=0.1, steps=steps)
        scales, d = by_largest(scale, 63)
        mins, dmin = by_largest(-low, 63)
    else:
        weight = error_weights(w, importance, 32, factor=2)
        codes, scale, low = scale_and_min(x, weight, top, first=-0.9, step=0.05, steps=36)
        total = ordered_sum(weight)
        scales, d = positive_scale(scale, total, 63)
        mins, dmin = positive_scale(-low, total, 63)
        d, dmin = to_float16(d), to_float16(dmin)
    if importance is None or top == 31:
        scales, mins = np.minimum(scales, 63), np.minimum(mins, 63)
    else:
        scales, mins = six_bits_that_spill(scales), six_bits_that_spill(mins)
    return fields_with_minimum(w, x, (codes, top), scales, mins, d, dmin)


def six_bits_that_spill(values: np.ndarray) -> np.ndarray:
    """Return what becomes of bytes [8, blocks] above 63 in Q4_K with importance, where ggml does not limit them.

    The upper two bits of byte j of the file belong to scale j + 4 (see the layout). A scale that came out negative is a
    byte above 63, whose own upper bits are then read as the other's.
    """
    upper = values[4:] & 15 | (values[4:] >> 4 & 3 | values[:4] >> 6) << 4
    return np.concatenate([values[:4] & 63, upper])


# ---- Q3_K: codes -4..3, stored 4 higher, in sub-blocks of 16; scales -32..31


@search("Q3_K")
def q3_k(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, scales int8, codes."""
    x, n = to_sub_blocks(w, 16), len(w)
    if importance is None:
        codes, scale = symmetric_scale_by_descent(x, 4)
        scales, d = by_extreme(scale, -32, 31)
    else:
        weight = error_weights(w, importance, 16, factor=2)
        codes, scale = symmetric_scale(x, weight, 4)
        scales, d = symmetric_scale(scale, ordered_sum(weight), 32)
        scales, d = scales - 32, to_float16(d)
    codes = codes_for(x, from_float16(d) * scales.astype(f32), codes, -4, 3)
    return {"d": per_block(d, n), "scales": per_block(scales, n, np.int8), "codes": to_rows(codes, n, np.uint8)}


# ---- Q6_K: codes -32..31, stored 32 higher, in sub-blocks of 16; scales -128..127


@search("Q6_K")
def q6_k(w: np.ndarray, importance: np.ndarray | None) -> dict:
    """Fields d, scales int8, codes. A block whose scales are all below 1e-15 becomes zero bytes."""
    x, n = to_sub_blocks(w, 16), len(w)
    weight = x * x if importance is None else to_sub_blocks(importance, 16)
    codes, scale = symmetric_scale(x, weight, 32)
    scales, d = by_extreme(scale, -128, 127)
    codes = codes_for(x, from_float16(d) * scales.astype(f32), codes, -32, 31)
    empty = ~(np.abs(largest_magnitude(scale)) >= EPS)
    codes, scales, d = np.where(empty, 0, codes), np.where(empty, 0, scales), np.where(empty, np.float16(0), d)
    return {"d": per_block(d, n), "scales": per_block(scales, n, np.int8), "codes": to_rows(codes, n, np.uint8)}
