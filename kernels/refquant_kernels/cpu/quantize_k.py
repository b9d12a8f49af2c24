"""quantize to Q2_K Q3_K Q4_K Q5_K Q6_K, byte for byte as `methods.kquants.k` and ggml.

Must move, for 4096 x 4096 weights: 67,108,864 bytes in, 9,437,184 out (Q4_K): at 15 GB/s 5 ms.
Must do: Q4_K, 22 trials of some 20 operations a weight, so 440; at 16 lanes and one vector operation a cycle 27 cycles
for 16 weights and trial, 37 a weight. The searches, not the memory, are the floor: about 100 million weights a second.

The idea: sixteen blocks side by side, one a lane (`simd`). A group of sixteen blocks is transposed on the way in, so
that weight i of all sixteen is one vector, searched without leaving that order, and its records are put together byte
by byte for all sixteen, and transposed on the way out.
"""

import numpy as np

from refquant_kernels.cpu.blocks import encoder
from refquant_kernels.cpu.compile import helper, kernel
from refquant_kernels.cpu.lanes import (
    EPS,
    block_starts,
    clip,
    from_float16,
    largest_magnitude,
    nearest,
    store_float16,
    sum_of_squares,
    to_float16,
    turn_in,
    turn_out,
)
from refquant_kernels.cpu.planes import pack_bit, pack_nibbles, pack_pairs
from refquant_kernels.cpu.searches import (
    code_with_minimum,
    positive_scale,
    scale_and_min,
    symmetric_scale,
    symmetric_scale_by_descent,
)
from refquant_kernels.cpu.simd import (
    LANES,
    any_lane,
    load,
    select,
    splat,
    splat_int,
    sqrt,
    store,
    to_float,
    to_int,
)

WEIGHTS = 256
f32 = np.float32
FIRST, STEP, STEPS = f32(-0.9), f32(0.05), 36  # the trials with an importance, the same for all


@helper
def error_weights(x, weight, factor):
    """Turn 256 vectors of importance into importance * sqrt(factor * mean of x^2 + x^2)."""
    mean = factor * sum_of_squares(x, 0, WEIGHTS) / f32(WEIGHTS)
    for i in range(0, LANES * WEIGHTS, LANES):
        v = load(x, i)
        store(weight, i, load(weight, i) * sqrt(mean + v * v))


@helper
def by_largest(values, n, top, integers):
    """Bits of the float16 scale of `n` vectors that are not negative; the integers, as bytes, go to `integers`."""
    peak = splat(0.0)
    for i in range(0, LANES * n, LANES):
        v = load(values, i)
        peak = select(v > peak, v, peak)
    inverse = select(peak > 0.0, splat(f32(top)) / peak, splat(0.0))
    for i in range(0, LANES * n, LANES):
        store(integers, i, nearest(inverse * load(values, i)) & 255)
    return to_float16(peak / f32(top))


@helper
def spill_six_bits(values):
    """What becomes of bytes above 63 in Q4_K with importance: their upper bits are read as those of number j + 4."""
    for j in range(0, LANES * 4, LANES):
        value, later = load(values, j), load(values, j + 4 * LANES)
        store(values, j + 4 * LANES, (later & 15) | ((((later >> 4) & 3) | (value >> 6)) << 4))
        store(values, j, value & 63)


@helper
def total_weights(weight, size, subs, total):
    """Sum of the weights of each sub-block."""
    for j in range(subs):
        w = splat(0.0)
        for i in range(LANES * size * j, LANES * size * (j + 1), LANES):
            w = w + load(weight, i)
        store(total, LANES * j, w)


# ---- Q2_K, Q4_K, Q5_K: scale and minimum


@kernel()
def quantize_k_with_minimum(w, importance, weighted, extra, k, first, last, out, bits):
    """Groups first .. last - 1 of sixteen blocks; bits 2, 4 or 5 say which format."""
    size, subs, top, start, step, steps, limit, factor, record = 32, 8, f32(15), f32(-1), f32(0.1), 20, 63, f32(2), 144
    if bits == 2:
        size, subs, top, start, steps, limit, factor, record = 16, 16, f32(3), f32(-0.5), 15, 15, f32(1), 84
    elif bits == 5:
        top, start, steps, record = f32(31), f32(-0.5), 15, 176
    if weighted:
        start, step, steps = FIRST, STEP, STEPS
    absolute = bits == 2 and not weighted
    blocks = w.size // WEIGHTS
    starts, rows = np.empty(LANES, np.int64), np.arange(0, 16 * LANES, LANES)
    x, weight = np.empty(WEIGHTS * LANES, np.float32), np.empty(WEIGHTS * LANES, np.float32)
    state = np.empty((6, 32 * LANES), np.float32)
    scale, low, inverse, origin, total, room = state[0], state[1], state[2], state[3], state[4], state[5]
    scales, mins = np.empty(16 * LANES, np.int32), np.empty(16 * LANES, np.int32)
    codes, image = np.empty(WEIGHTS * LANES, np.uint8), np.empty(176 * LANES, np.uint8)

    for group in range(first, last):
        block = LANES * group
        block_starts(block, blocks, WEIGHTS, blocks, starts)
        turn_in(w, starts, WEIGHTS, x, 0)
        if weighted:
            block_starts(block, blocks, WEIGHTS, k // WEIGHTS, starts)
            turn_in(importance, starts, WEIGHTS, weight, 0)
            error_weights(x, weight, factor)

        for j in range(subs):  # each sub-block by itself
            at, p = LANES * size * j, LANES * size * j
            if not weighted:
                p = 0
                rms = splat(0.0) if bits == 2 else sqrt(sum_of_squares(x, at, size) / f32(size))
                for i in range(0, LANES * size, LANES):
                    store(weight, i, rms + abs(load(x, at + i)))
            s, m, q, o = scale_and_min(x, at, weight, p, size, top, start, step, steps, absolute, room)
            j *= LANES
            store(scale, j, s)
            store(low, j, -m)
            store(inverse, j, q)
            store(origin, j, o)

        if weighted:  # the scales of the block
            total_weights(weight, size, subs, total)
            d = to_float16(positive_scale(scale, total, subs, limit, scales))
            dmin = to_float16(positive_scale(low, total, subs, limit, mins))
        else:
            d, dmin = by_largest(scale, subs, limit, scales), by_largest(low, subs, limit, mins)
        if bits == 2:
            for j in range(0, LANES * subs, LANES):
                byte = (load(scales, j) | (load(mins, j) << 4)) & 255
                store(scales, j, byte & 15)
                store(mins, j, byte >> 4)
        elif weighted and bits == 4:
            spill_six_bits(scales)
            spill_six_bits(mins)
        else:
            for j in range(0, LANES * subs, LANES):
                store(scales, j, clip(load(scales, j), 0, 63))
                store(mins, j, clip(load(mins, j), 0, 63))

        for j in range(subs):  # the codes, once more
            width = from_float16(d) * to_float(load(scales, LANES * j))
            offset = from_float16(dmin) * to_float(load(mins, LANES * j))
            at, kept = LANES * size * j, width == 0.0
            for i in range(at, at + LANES * size, LANES):
                store(codes, i, clip(nearest((load(x, i) + offset) / width), 0, np.int32(top)))
            if any_lane(kept):
                q, o = load(inverse, LANES * j), load(origin, LANES * j)
                for i in range(at, at + LANES * size, LANES):
                    code = to_int(code_with_minimum(load(x, i), q, o, top))
                    store(codes, i, select(kept, code, load(codes, i)))

        if bits == 2:
            for j in range(16):
                store(image, LANES * j, load(scales, LANES * j) | (load(mins, LANES * j) << 4))
            pack_pairs(codes, 0, image, 16)
            store_float16(image, 80, d)
            store_float16(image, 82, dmin)
        else:
            store_float16(image, 0, d)
            store_float16(image, 2, dmin)
            for j in range(0, 4 * LANES, LANES):
                s, later_s, m, later_m = load(scales, j), load(scales, j + 64), load(mins, j), load(mins, j + 64)
                store(image, LANES * 4 + j, s | ((later_s >> 4) << 6))
                store(image, LANES * 8 + j, m | ((later_m >> 4) << 6))
                store(image, LANES * 12 + j, (later_s & 15) | (later_m << 4))
            if bits == 5:
                pack_bit(codes, 4, image, 16)
            pack_nibbles(codes, 32, image, record - 128)
        turn_out(image, record, rows, out, block * record)


# ---- Q3_K, Q6_K: symmetric


@kernel()
def quantize_k_symmetric(w, importance, weighted, extra, k, first, last, out, bits):
    """Groups first .. last - 1 of sixteen blocks; bits 3 or 6 say which format."""
    top, low, record = np.int32(4), -32, 110
    if bits == 6:
        top, low, record = np.int32(32), -128, 210
    size, subs = 16, 16
    blocks = w.size // WEIGHTS
    starts, rows = np.empty(LANES, np.int64), np.arange(0, 16 * LANES, LANES)
    x, weight = np.empty(WEIGHTS * LANES, np.float32), np.empty(WEIGHTS * LANES, np.float32)
    state = np.empty((3, 16 * LANES), np.float32)
    scale, inverse, total = state[0], state[1], state[2]
    scales, descended = np.empty(16 * LANES, np.int32), np.empty(WEIGHTS * LANES, np.int32)
    codes, image = np.empty(WEIGHTS * LANES, np.uint8), np.empty(210 * LANES, np.uint8)
    by_descent = bits == 3 and not weighted

    for group in range(first, last):
        block = LANES * group
        block_starts(block, blocks, WEIGHTS, blocks, starts)
        turn_in(w, starts, WEIGHTS, x, 0)
        if weighted:
            block_starts(block, blocks, WEIGHTS, k // WEIGHTS, starts)
            turn_in(importance, starts, WEIGHTS, weight, 0)
            if bits == 3:
                error_weights(x, weight, f32(2))
        elif bits == 6:
            for i in range(0, LANES * WEIGHTS, LANES):
                store(weight, i, load(x, i) * load(x, i))

        for j in range(subs):  # each sub-block by itself
            at = LANES * size * j
            if by_descent:
                store(scale, LANES * j, symmetric_scale_by_descent(x, at, size, top, weight, 0, descended, at))
            else:
                s, q, empty = symmetric_scale(x, at, weight, at, size, top)
                store(scale, LANES * j, s)
                store(inverse, LANES * j, select(empty, splat(0.0), q))

        extreme = largest_magnitude(scale, 0, subs)  # the scales of the block
        empty = splat(0.0) > 1.0
        if bits == 3 and weighted:
            total_weights(weight, size, subs, total)
            s, q, none = symmetric_scale(scale, 0, total, 0, subs, np.int32(32))
            for j in range(0, LANES * subs, LANES):
                integer = clip(nearest(q * load(scale, j)), -32, 31)
                store(scales, j, select(none, splat_int(-32), integer))
            d = to_float16(s)
        else:
            q, none = splat(f32(low)) / extreme, extreme == 0.0
            for j in range(0, LANES * subs, LANES):
                integer = clip(nearest(q * load(scale, j)), low, -low - 1)
                store(scales, j, select(none, splat_int(low), integer))
            d = select(none, splat_int(0), to_float16(splat(f32(1)) / q))
            if bits == 6:
                empty = ~(abs(extreme) >= EPS)
                d = select(empty, splat_int(0), d)

        for j in range(subs):  # the codes, once more
            width = from_float16(d) * to_float(load(scales, LANES * j))
            at, kept = LANES * size * j, width == 0.0
            for i in range(at, at + LANES * size, LANES):
                store(codes, i, clip(nearest(load(x, i) / width), -top, top - 1) + top)
            if any_lane(kept):
                q = load(inverse, LANES * j)
                for i in range(at, at + LANES * size, LANES):
                    if by_descent:
                        code = load(descended, i)
                    else:
                        code = clip(nearest(q * load(x, i)), -top, top - 1) + top
                        code = select(q == 0.0, splat_int(0), code)
                    store(codes, i, select(kept, code, load(codes, i)))
        if bits == 6 and any_lane(empty):
            for i in range(0, LANES * WEIGHTS, LANES):
                store(codes, i, select(empty, splat_int(0), load(codes, i)))
            for j in range(0, LANES * subs, LANES):
                store(scales, j, select(empty, splat_int(0), load(scales, j)))

        if bits == 3:
            pack_bit(codes, 2, image, 0)
            pack_pairs(codes, 0, image, 32)
            for j in range(8):
                a, b = load(scales, LANES * j) + 32, load(scales, LANES * (j + 8)) + 32
                store(image, LANES * (96 + j), (a & 15) | ((b & 15) << 4))
            for j in range(4):
                value = splat_int(0)
                for plane in range(4):
                    value = value | (((load(scales, LANES * (4 * plane + j)) + 32) >> 4) << (2 * plane))
                store(image, LANES * (104 + j), value)
            store_float16(image, 108, d)
        else:
            pack_nibbles(codes, 64, image, 0)
            pack_pairs(codes, 4, image, 128)
            for j in range(16):
                store(image, LANES * (192 + j), load(scales, LANES * j))
            store_float16(image, 208, d)
        turn_out(image, record, rows, out, block * record)


for _bits in (2, 4, 5):
    encoder(f"Q{_bits}_K", quantize_k_with_minimum, _bits)
for _bits in (3, 6):
    encoder(f"Q{_bits}_K", quantize_k_symmetric, _bits)
