"""obq: `methods.obq`, a row on each thread, the inverse growing smaller.

576 x 192 weights. Must do: for each row and each of its k steps one elimination in the inverse of what is still free:
k^3 / 3 multiplications, divisions and subtractions in float64 a row, 2.4 million. Little to move: the inverse of a row,
8 k^2 bytes, lies in the cache.

The idea: a weight that is done needs its row and column no more. The elimination reads the inverse and writes it back
one row and one column smaller, in the same pass and place, so the work is a third of the reference's, over contiguous
rows. Every number that is still needed is computed by the reference's own operations, in float64, so the codes are
equal to its codes.
"""

import numpy as np

from refquant import ops
from refquant.methods import gptq
from refquant_kernels.cpu.compile import in_pieces, kernel

f32, f64 = np.float32, np.float64


@kernel()
def obq_rows(W, inverse, scales, zeros, top, outliers_first, first, last, codes, losses):
    """Codes uint8 and losses float64 [n, k] of rows first .. last - 1; scales and zeros [n, k] are of each weight."""
    k = W.shape[1]
    H, column, w = np.empty((k, k)), np.empty(k), np.empty(k)
    free, error, code = np.empty(k, np.int64), np.empty(k), np.empty(k)
    for r in range(first, last):
        H[:] = inverse
        for i in range(k):
            free[i], w[i] = i, W[r, i]
        for left in range(k, 0, -1):
            best, worst, p, beyond = np.inf, -np.inf, 0, 0
            for i in range(left):
                scale, zero = scales[r, free[i]], zeros[r, free[i]]
                code[i] = min(max(np.rint(w[i] / scale) + zero, 0.0), top)
                error[i] = w[i] - f64((f32(code[i]) - zero) * scale)
                cost, far = 0.5 * error[i] ** 2 / H[i, i], abs(error[i]) - f64(scale / f32(2))
                if cost < best:
                    best, p = cost, i
                if far > worst:
                    worst, beyond = far, i
            if outliers_first and worst > 0:
                p = beyond
            pivot = H[p, p]
            codes[r, free[p]], losses[r, free[p]] = np.uint8(code[p]), 0.5 * error[p] ** 2 / pivot
            step = error[p] / pivot
            for i in range(left):
                column[i] = H[i, p]
            row = H[p].copy()
            for i in range(left):
                if i == p:
                    continue
                to = i - (i > p)
                w[to], free[to] = w[i] - step * column[i], free[i]
                for j in range(p):
                    H[to, j] = H[i, j] - column[i] * row[j] / pivot
                for j in range(p + 1, left):
                    H[to, j - 1] = H[i, j] - column[i] * row[j] / pivot


@ops.fast_path("obq", "int", backend="numba")
def quantize(w, H, grid, damp, outliers_first):
    """The reference's codes and losses."""
    W, H, dead = gptq.without_dead(w, H)
    n, k = W.shape
    fitted, group = grid.fit_groups(W), grid.group_index(k)
    U, damp = gptq.inverse_factor(H, damp)
    scales, zeros = (np.ascontiguousarray(each[:, group]) for each in fitted)
    codes, losses, inverse = np.empty((n, k), np.uint8), np.empty((n, k)), np.ascontiguousarray(U.T @ U)

    def run(first, last):
        obq_rows(W, inverse, scales, zeros, f64(grid.max_code), outliers_first, first, last, codes, losses)

    in_pieces(run, n, 1)
    return gptq.Result(ops.pack(grid.fields(codes, *fitted), grid.name, (n, k)), losses.sum(axis=0), damp, dead)
