"""matmul_int8 of the uniform grids of 4 and 8 bits whose groups are multiples of 64: refquant's own definition.

The activations of a token are rounded in runs of 128, or of 64 where a group is no multiple of 128: scale = max |x| /
127, kept in float32, code = x / scale to the nearest (`activations`). Then y = sum decode(q) * decode(x), where the sum
over a run is one of integers.

Must move, 4096 x 4096 weights of int4-g128: 8,716,288 bytes: at 18 GB/s 0.48 ms. Must do, 128 weights: a shift, two
masks, two instructions for 128 products (VNNI), a conversion, a multiplication and addition, some 8 for the scale and
the zero-point: less than any block format needs, so that the memory is the floor.

The zero-point meets the sum of the group's decoded activations, once a group: minus zero * sum(x); sixteen groups at a
time, where codes have 4 bits and scales are float16.
"""

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.grids import as_grid
from refquant_kernels.cpu.activations import round_q8_0, sums_of_runs
from refquant_kernels.cpu.compile import PRODUCT, in_pieces, specialized
from refquant_kernels.cpu.decode import sixteen_halves
from refquant_kernels.cpu.int_grids import as_stored, scale_at, sixteen_nibbles, zero_at
from refquant_kernels.cpu.machine import (
    SIGNED_EXCESS,
    dot_bytes,
    dot_signed,
    load_words,
    load_words_twice,
    prefetch,
    sum_lanes,
)
from refquant_kernels.cpu.matmul_int8 import AHEAD, NIBBLES, in_halves, run_length
from refquant_kernels.cpu.simd import LANES, fma, load, splat, splat_int, to_float

BITS, RUN = None, None  # given by `specialized`
TURN = -0x7F7F_7F80  # turns the highest bit of each byte: 0..255 becomes -128..127
ZERO_8 = np.float32(128 - SIGNED_EXCESS)  # what is thereby subtracted from the codes


def _rows(x, scale_x, sums, data, scales, width, zeros, runs, first, last, out):
    """out[t, r] for all tokens t and rows first .. last - 1; `runs` of activations to a group of weights.

    x: uint8 [m, k], the bytes of signed codes, first the even, then the odd ones of each run where codes have 4 bits;
    scale_x [m, k / RUN]; sums [m, G], of the decoded activations. The rest as in `int_grids`.
    """
    k, groups = x.shape[1], sums.shape[1]
    row_bytes, run_bytes, zero_bytes = k * BITS // 8, RUN * BITS // 8, (groups * BITS + 7) // 8
    together = groups // LANES * LANES if BITS == 4 and width == 2 and zeros.size else 0
    for t in range(x.shape[0]):
        tokens, scale_of_token, sums_of_token = x[t], scale_x[t], sums[t]
        for r in range(first, last):
            total, rest, zero_part = splat(0.0), splat(0.0), np.float32(0)
            for g in range(0, together, LANES):  # zero-points of sixteen groups
                zero = sixteen_nibbles(zeros, r * zero_bytes + g // 2)
                rest = fma(sixteen_halves(scales, 2 * (r * groups + g)) * zero, load(sums_of_token, g), rest)
            for g in range(together, groups):
                zero = zero_at(zeros, r * zero_bytes, BITS, g) - (ZERO_8 if BITS == 8 else np.float32(0))
                zero_part += scale_at(scales, width, r * groups + g) * zero * sums_of_token[g]
            for g in range(groups):
                scale = scale_at(scales, width, r * groups + g)
                for run in range(g * runs, (g + 1) * runs):
                    at, column, products = r * row_bytes + run * run_bytes, run * RUN, splat_int(0)
                    for line in range(0, run_bytes, 64):
                        prefetch(data, at + AHEAD + line)
                    if BITS == 8:
                        for i in range(0, RUN, 64):
                            codes = load_words(data, at + i) ^ TURN
                            products = dot_signed(products, codes, load_words(tokens, column + i))
                    elif RUN == 128:
                        codes = load_words(data, at)
                        products = dot_bytes(products, codes & NIBBLES, load_words(tokens, column))
                        products = dot_bytes(products, (codes >> 4) & NIBBLES, load_words(tokens, column + 64))
                    else:
                        codes = in_halves(load_words_twice(data, at), 0, 4) & NIBBLES
                        products = dot_bytes(products, codes, load_words(tokens, column))
                    total = fma(to_float(products), splat(scale * scale_of_token[run]), total)
            out[t, r] = sum_lanes(total - rest) - zero_part


ROWS = {
    (bits, run): specialized(_rows, f"matmul_int8_int{bits}_{run}", BITS=bits, RUN=run)
    for bits in (4, 8)
    for run in (64, 128)
}


@ops.fast_path("matmul_int8", "int", backend="numba")
def matmul(x, q):
    """X [..., k] -> float32 [..., n]; `BadInput` for a grid that it does not handle (see above)."""
    grid, (n, k) = as_grid(q.format), q.shape
    if grid.bits not in (4, 8) or (grid.group_size or k) % 64 or k % (grid.group_size or k) or "g_idx" in q.arrays:
        raise BadInput(
            f"{q.format} {list(q.shape)}: activations of 8 bits need a grid of 4 or 8 bits, whole groups that are "
            "multiples of 64, and no g_idx"
        )
    data, scales, width, zeros, _, size, bits = as_stored(q)
    run = run_length(q)
    codes, scale_x = round_q8_0(np.asarray(x, np.float32).reshape(-1, k), run, np.float32)
    m = len(codes)
    of_runs = sums_of_runs(codes, run) * scale_x
    of_groups = of_runs.reshape(m, k // size, size // run).sum(axis=2, dtype=np.float32)
    if bits == 4:
        codes = codes.reshape(m, k // run, run // 2, 2).swapaxes(2, 3)
    ordered, out = np.ascontiguousarray(codes).reshape(m, k).view(np.uint8), np.empty((m, n), np.float32)
    kernel = ROWS[bits, run]

    def piece(first, last):
        kernel(ordered, scale_x, of_groups, data, scales, width, zeros, size // run, first, last, out)

    in_pieces(piece, n, max(1, PRODUCT // k))
    return out.reshape(*x.shape[:-1], n)
