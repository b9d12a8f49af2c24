"""awq on uniform grids: `methods.awq`'s search, its candidates rounded in two passes over the weights; and its clip.

4096 x 4096 weights, 512 tokens, 20 exponents. Must do: 21 products of 17.2 GFLOP, which are BLAS or the caller's
(`forward`); and 20 times scale, round and scale back, 67,108,864 bytes in and as many out. NumPy makes some twelve
passes over memory for each; here there are two, of rows that are in the cache: their scaled weights and the groups'
ranges, then codes, values and the division by the scales together.

Clip, 512 tokens, 10 limits: a group's tokens enter by the triangle of their QR, so 1.4 TFLOP become 0.17; a division, a
rounding and some 8 other operations a weight and limit. Sixteen rows, one a lane, go through all limits while their
group (8 KiB) and the triangle (64 KiB) are in the cache. Four rows of the triangle at a time keep the sums independent.
"""

import numpy as np

from refquant import ops
from refquant.methods import awq
from refquant_kernels.cpu.compile import in_pieces, kernel
from refquant_kernels.cpu.int_grids import PIECE, group_ranges, nearest_code
from refquant_kernels.cpu.simd import LANES, fma, load, select, splat, store, to_float


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
                code = to_float(nearest_code(load(row, i), scale, zero, top))
                store(out, i, (code - zero) * scale / load(s, i))
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


TILE = 4  # rows of the triangle


@kernel()
def clip_errors(tiles, triangles, limits, scales, zeros, shape, top, first, last, errors):
    """Squared output change of every group at every limit, for groups first .. last - 1 of sixteen rows.

    tiles float32 [n / 16, k, 16]; triangles [G, height, g], height a multiple of 4; limits, scales, zeros and errors
    [limits, G, n]; all flat. shape = k, g, height, n.
    """
    k, size, height, n = shape
    groups = -(-k // size)
    d = np.empty(size * LANES, np.float32)
    for b in range(first, last):
        for g in range(groups):
            m, start = min(size, k - g * size), (b * k + g * size) * LANES
            for t in range(limits.size // (groups * n)):
                at = (t * groups + g) * n + LANES * b
                limit, scale, zero = load(limits, at), load(scales, at), load(zeros, at)
                for i in range(m):
                    w = load(tiles, start + LANES * i)
                    cut = select(w > limit, limit, select(w < -limit, -limit, w))
                    store(d, LANES * i, (to_float(nearest_code(cut, scale, zero, top)) - zero) * scale - w)
                total = splat(0.0)
                for i in range(0, height, TILE):
                    row = (g * height + i) * size
                    a = e = f = h = splat(0.0)
                    for j in range(i, m):
                        change = load(d, LANES * j)
                        a = fma(change, splat(triangles[row + j]), a)
                        e = fma(change, splat(triangles[row + size + j]), e)
                        f = fma(change, splat(triangles[row + 2 * size + j]), f)
                        h = fma(change, splat(triangles[row + 3 * size + j]), h)
                    total = total + ((a * a + e * e) + (f * f + h * h))
                store(errors, at, total)


@ops.fast_path("awq clip", "int", backend="numba")
def clip(w, x, grid, shares):
    """`awq._clip`: the limits with the least errors, which are summed in another order."""
    (n, k), size = w.shape, grid.group_size or w.shape[1]
    starts, rows = grid.starts(k), -(-n // LANES) * LANES
    height = -(-min(len(x), size) // TILE) * TILE
    triangles = np.zeros((len(starts), height, size), np.float32)
    for g, start in enumerate(starts):
        R = np.linalg.qr(x[:, start : start + size], mode="r")
        triangles[g, : R.shape[0], : R.shape[1]] = R
    padded = np.zeros((rows, k), np.float32)
    padded[:n] = w
    low, high = (each.reduceat(padded, starts, axis=1).T for each in (np.minimum, np.maximum))  # [G, rows]
    limits = np.maximum(-low, high) * shares[:, None, None]  # [limits, G, rows]
    scales, zeros = grid.fit_range(np.maximum(low, -limits), np.minimum(high, limits))
    errors, top = np.empty(limits.size, np.float32), np.float32(grid.max_code)
    tiles = padded.reshape(-1, LANES, k).transpose(0, 2, 1).reshape(-1)
    flat = [each.reshape(-1) for each in (triangles, limits, scales, zeros)]
    shape = (k, size, height, rows)
    in_pieces(lambda first, last: clip_errors(tiles, *flat, shape, top, first, last, errors), rows // LANES, 1)
    best = errors.reshape(limits.shape).argmin(axis=0)  # the first of equals
    return np.take_along_axis(limits, best[None], axis=0)[0, :, :n].T


@ops.fast_path("awq", "int", backend="numba")
def search(ws, x, grid, candidates, forward=None):
    """`awq.output_errors`: the same errors."""
    return awq.output_errors(ws, x, grid, candidates, forward, candidate)
