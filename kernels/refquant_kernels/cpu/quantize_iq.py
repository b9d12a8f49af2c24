"""quantize to IQ4_NL and IQ4_XS, byte for byte as `methods.kquants.iq` and ggml.

Must move, for 4096 x 4096 weights: 67,108,864 bytes in, 8,912,896 out (IQ4_XS): at 15 GB/s 5 ms.
Must do: 16 trials a weight, each 15 comparisons and selections to find the nearest of 16 values, and 5 operations more:
some 560 operations a weight; one a cycle for sixteen lanes makes 35 cycles a weight.

The idea: as in `quantize_k`. Comparing with all 15 middles needs no table look-up, so nothing but plain vectors.
"""

import numpy as np

from refquant_kernels.cpu.blocks import encoder
from refquant_kernels.cpu.compile import kernel
from refquant_kernels.cpu.lanes import (
    block_starts,
    clip,
    largest_magnitude,
    nearest,
    reciprocal,
    store_float16,
    sum_of_squares,
    to_float16,
    turn_in,
    turn_out,
)
from refquant_kernels.cpu.searches import table_code, table_scale
from refquant_kernels.cpu.simd import LANES, load, splat_int, sqrt, store, to_float

f32 = np.float32
TWO = f32(2)


@kernel()
def quantize_iq4(w, importance, weighted, extra, k, first, last, out, size):
    """Groups first .. last - 1 of sixteen blocks; size 32 for IQ4_NL, 256 for IQ4_XS."""
    record, subs = (18, 1) if size == 32 else (136, 8)
    blocks = w.size // size
    starts, rows = np.empty(LANES, np.int64), np.arange(0, 16 * LANES, LANES)
    x, weight = np.empty(256 * LANES, np.float32), np.empty(256 * LANES, np.float32)
    scale = np.empty(8 * LANES, np.float32)
    image = np.empty(136 * LANES, np.uint8)

    for group in range(first, last):
        block = LANES * group
        block_starts(block, blocks, size, blocks, starts)
        turn_in(w, starts, size, x, 0)
        if weighted:
            block_starts(block, blocks, size, k // size, starts)
            turn_in(importance, starts, size, weight, 0)
            mean = sum_of_squares(x, 0, size) * (TWO / f32(size))
            for i in range(0, LANES * size, LANES):
                v = load(x, i)
                store(weight, i, load(weight, i) * sqrt(mean + v * v))
        else:
            for i in range(0, LANES * size, LANES):
                store(weight, i, load(x, i) * load(x, i))

        for j in range(subs):
            store(scale, LANES * j, table_scale(x, 32 * LANES * j, weight, 32 * LANES * j, 32))
        if size == 32:
            d = load(scale, 0)
        else:
            d = -largest_magnitude(scale, 0, 8) / f32(32)
            inverse = reciprocal(d)
            high, byte = splat_int(0), splat_int(0)
            for j in range(8):
                integer = clip(nearest(inverse * load(scale, LANES * j)), -32, 31)
                store(scale, LANES * j, d * to_float(integer))
                integer = integer + 32
                high = high | ((integer >> 4) << (2 * j))
                byte = (byte | ((integer & 15) << 4)) if j % 2 else (integer & 15)
                store(image, LANES * (4 + j // 2), byte)
            store_float16(image, 2, high)
        store_float16(image, 0, to_float16(d))
        for j in range(subs):
            inverse = reciprocal(load(scale, LANES * j))
            for i in range(16):
                at = LANES * (32 * j + i)
                low, high = table_code(inverse * load(x, at)), table_code(inverse * load(x, at + 16 * LANES))
                store(image, LANES * (record - 16 * (subs - j) + i), low | (high << 4))
        turn_out(image, record, rows, out, block * record)


encoder("IQ4_NL", quantize_iq4, 32, 32)
encoder("IQ4_XS", quantize_iq4, 256)
