"""quantize to Q4_0 Q4_1 Q5_0 Q5_1 Q8_0, byte for byte as `methods.kquants.legacy` and ggml.

Must move, for 4096 x 4096 weights: 67,108,864 bytes in, 9,437,184 out (Q4_0): at 15 GB/s 5 ms.
Must do: without importance some 10 operations a weight, so the memory is the floor. With importance 37 trials (Q4_1,
Q5_1) or 19 (Q4_0, Q5_0) of 10 to 20 operations, as in `quantize_k`.

The idea: as in `quantize_k`, sixteen blocks side by side; here the transposition is most of the work.
"""

import numpy as np

from refquant_kernels.cpu.blocks import encoder, row_sums_of_squares
from refquant_kernels.cpu.compile import helper, kernel
from refquant_kernels.cpu.lanes import (
    block_starts,
    clip,
    largest_magnitude,
    nearest,
    reciprocal,
    round_half_away,
    store_float16,
    to_float16,
    truncated,
    turn_in,
    turn_out,
)
from refquant_kernels.cpu.searches import code_with_minimum, scale_and_min, symmetric_scale
from refquant_kernels.cpu.simd import (
    LANES,
    load,
    select,
    shift_right,
    splat,
    splat_int,
    sqrt,
    store,
    to_int,
)

WEIGHTS = 32
f32 = np.float32
HALF, FIRST, STEP, STEPS = f32(0.5), f32(-0.9), f32(0.05), 36
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = range(5)


@helper
def symmetric(x, weight, weighted, middle, codes):
    """Scale; codes 0 .. 2 middle - 1, as bytes."""
    if weighted:
        d, inverse, empty = symmetric_scale(x, 0, weight, 0, WEIGHTS, np.int32(middle))
        for i in range(0, LANES * WEIGHTS, LANES):
            code = clip(nearest(inverse * load(x, i)), -middle, middle - 1) + middle
            store(codes, i, select(empty, splat_int(0), code))
        return d
    d = largest_magnitude(x, 0, WEIGHTS) / f32(-middle)
    inverse = reciprocal(d)
    for i in range(0, LANES * WEIGHTS, LANES):
        code = truncated(inverse * load(x, i) + (f32(middle) + HALF))
        store(codes, i, select(code > 2 * middle - 1, splat_int(2 * middle - 1), code))
    return d


@helper
def with_minimum(x, weight, weighted, top, codes, room):
    """Scale and minimum; codes 0 .. top, as bytes."""
    if weighted:
        d, m, inverse, start = scale_and_min(x, 0, weight, 0, WEIGHTS, f32(top), FIRST, STEP, STEPS, False, room)
        for i in range(0, LANES * WEIGHTS, LANES):
            store(codes, i, to_int(code_with_minimum(load(x, i), inverse, start, f32(top))))
        return d, m
    m = load(x, 0)
    high = m
    for i in range(LANES, LANES * WEIGHTS, LANES):
        v = load(x, i)
        m, high = select(v < m, v, m), select(v > high, v, high)
    d = (high - m) / f32(top)
    inverse = reciprocal(d)
    for i in range(0, LANES * WEIGHTS, LANES):
        code = truncated((load(x, i) - m) * inverse + HALF)
        store(codes, i, select(code > top, splat_int(top), code))
    return d, m


@helper
def pack_nibbles(codes, image, byte):
    """The lower 4 bits of 32 codes in planes of 16."""
    for j in range(16):
        store(image, LANES * (byte + j), (load(codes, LANES * j) & 15) | ((load(codes, LANES * (j + 16)) & 15) << 4))


@helper
def pack_fifth_bits(codes, image, byte):
    """Bit 4 of 32 codes, in order."""
    for j in range(4):
        value = splat_int(0)
        for i in range(8):
            value = value | ((shift_right(load(codes, LANES * (8 * j + i)), splat_int(4)) & 1) << i)
        store(image, LANES * (byte + j), value)


@kernel()
def quantize_legacy(w, importance, weighted, sums, k, first, last, out, which):
    """Groups first .. last - 1 of sixteen blocks. `sums`: of the squares of each row, where there is an importance."""
    record = 34
    if which != Q8_0:
        record = 18 + (2 if which in (Q4_1, Q5_1) else 0) + (4 if which in (Q5_0, Q5_1) else 0)
    bits = 5 if which in (Q5_0, Q5_1) else 4
    blocks = w.size // WEIGHTS
    starts, rows = np.empty(LANES, np.int64), np.arange(0, 16 * LANES, LANES)
    x, weight = np.empty(WEIGHTS * LANES, np.float32), np.empty(WEIGHTS * LANES, np.float32)
    room, mean = np.empty(WEIGHTS * LANES, np.float32), np.empty(LANES, np.float32)
    codes, image = np.empty(WEIGHTS * LANES, np.uint8), np.empty(34 * LANES, np.uint8)

    for group in range(first, last):
        block = LANES * group
        block_starts(block, blocks, WEIGHTS, blocks, starts)
        turn_in(w, starts, WEIGHTS, x, 0)
        if weighted:
            for lane in range(LANES):
                mean[lane] = sums[starts[lane] // k] / f32(k)
            block_starts(block, blocks, WEIGHTS, k // WEIGHTS, starts)
            turn_in(importance, starts, WEIGHTS, weight, 0)
            for i in range(0, LANES * WEIGHTS, LANES):
                v = load(x, i)
                store(weight, i, load(weight, i) * sqrt(load(mean, 0) + v * v))

        if which == Q8_0:
            d = splat(0.0)
            for i in range(0, LANES * WEIGHTS, LANES):
                v = abs(load(x, i))
                d = select(v > d, v, d)
            d = d / f32(127)
            inverse = reciprocal(d)
            for i in range(0, LANES * WEIGHTS, LANES):
                store(image, 2 * LANES + i, truncated(round_half_away(load(x, i) * inverse)))
        else:
            if which in (Q4_0, Q5_0):
                d = symmetric(x, weight, weighted, 1 << (bits - 1), codes)
            else:
                d, m = with_minimum(x, weight, weighted, (1 << bits) - 1, codes, room)
                store_float16(image, 2, to_float16(m))
            if bits == 5:
                pack_fifth_bits(codes, image, record - 20)
            pack_nibbles(codes, image, record - 16)
        store_float16(image, 0, to_float16(d))
        turn_out(image, record, rows, out, block * record)


for _which, _name in enumerate(("Q4_0", "Q4_1", "Q5_0", "Q5_1")):
    encoder(_name, quantize_legacy, _which, WEIGHTS, extra=row_sums_of_squares)
encoder("Q8_0", quantize_legacy, Q8_0, WEIGHTS, uses_importance=False)
