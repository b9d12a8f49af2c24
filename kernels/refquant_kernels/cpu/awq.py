"""awq on uniform grids: `methods.awq`'s search, its candidates rounded in two passes over the weights.

4096 x 4096 weights, 512 tokens, 20 exponents. Must do: 21 products of 17.2 GFLOP, which are BLAS or the caller's
(`forward`); and 20 times scale, round and scale back, 67,108,864 bytes in and as many out. NumPy makes some twelve
passes over memory for each; here there are two, of rows that are in the cache: their scaled weights and the groups'
ranges, then codes, values and the division by the scales together.
"""

import numpy as np

from refquant import ops
from refquant.methods import awq
from refquant_kernels.cpu.compile import in_pieces, kernel
from refquant_kernels.cpu.int_grids import FAR, PIECE, group_ranges
from refquant_kernels.cpu.lanes import MAGIC
from refquant_kernels.cpu.simd import LANES, load, select, splat, store


@kernel()
def round_rows(w, s, scales, zeros, k, size, top, first, last):
    """Rows first .. last - 1 of w become (code - zero) * scale / s, code = clip(round(w / scale) + zero, 0, top).

    w float32 [n k]; s is padded with ones to k + 16; scales and zeros [n G].
    """
    groups = -(-k // size)
    row, out = np.zeros(k + LANES, np.float32), np.empty(k + LANES, np.float32)
    for r in range(first, last):
        row[:k] = w[r * k : (r + 1) * k]
        for g in range(groups):
            scale, zero = splat(scales[r * groups + g]), splat(zeros[r * groups + g])
            for i in range(g * size, min(k, (g + 1) * size), LANES):  # may run over into the next group, which follows
                v = load(row, i) / scale
                v = select(v < -FAR, splat(-FAR), select(v > FAR, splat(FAR), v))
                v = ((v + MAGIC) - MAGIC) + zero
                v = select(v > 0.0, v, splat(0.0))
                v = select(v < top, v, splat(top))
                store(out, i, (v - zero) * scale / load(s, i))
        w[r * k : (r + 1) * k] = out[:k]


def candidate(w, s, grid):
    """`awq.candidate`: the same values."""
    (n, k), size = w.shape, grid.group_size or w.shape[1]
    groups, least = -(-k // size), max(1, PIECE // k)
    scaled, padded = np.empty((n, k), np.float32), np.append(s, np.ones(LANES, np.float32))
    low, high = np.empty(n * groups, np.float32), np.empty(n * groups, np.float32)

    def ranges(first, last):
        np.multiply(w[first:last], s, out=scaled[first:last])
        group_ranges(scaled.reshape(-1), k, size, first, last, low, high)

    in_pieces(ranges, n, least)
    scales, zeros = grid.fit_range(low, high)
    top, flat = np.float32(grid.max_code), scaled.reshape(-1)
    in_pieces(lambda first, last: round_rows(flat, padded, scales, zeros, k, size, top, first, last), n, least)
    return scaled


@ops.fast_path("awq", "int", backend="numba")
def search(ws, x, grid, candidates, forward=None):
    """`awq.output_errors`: the same errors."""
    return awq.output_errors(ws, x, grid, candidates, forward, candidate)
