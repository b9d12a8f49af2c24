"""gptq on uniform grids: `methods.gptq`, sixteen rows at a time, and its factor by one factorization.

4096 x 4096 weights, blocks of 128 columns. Must do: 68.7 GFLOP (n k^2) for the updates of the columns after a block,
which are BLAS here as in the reference; 2.1 GFLOP within the blocks, and a division and a rounding per weight; for the
factor 23 GFLOP (Cholesky, k^3 / 3) and 46 (triangular inverse by halves) in float64. Little to move: H twice, W once a
block.

Two ideas:

- **The factor.** The reference follows the paper: invert H by one Cholesky, then factor the inverse by another. With J
  the reversal of order and J H J = L L^T::

      H^-1 = J L^-T L^-1 J = (J L^-1 J)^T (J L^-1 J)        and J L^-1 J is upper triangular, so it is U

  One factorization and one triangular inverse instead of two factorizations, an inverse and a product. (Where H is so
  near singular that the two could part, the reference's own function is called.)
- **The loop within a block** touches each row by itself. Sixteen rows, one a lane, are transposed into 8 KiB, and all
  of the block's columns are gone through before they leave the cache; NumPy passes over all rows for every column.

In a block every operation is the reference's, rounded alike. The codes differ where the factor's last place decides.
"""

from itertools import pairwise

import numpy as np

from refquant import ops
from refquant.methods import gptq
from refquant_kernels.cpu.compile import in_pieces, kernel
from refquant_kernels.cpu.lanes import MAGIC
from refquant_kernels.cpu.simd import LANES, load, select, splat, store, to_int

LEAF = 64  # columns of a triangle that is inverted whole
CONDITION = 1e14  # of H, from above; beyond it the reference's second factorization may fail, and raise the damping
FAR = np.float32(1024)
CHUNK = 1 << 18  # weights updated at a time


def invert_lower(L: np.ndarray) -> None:
    """Invert a lower triangle in place, by halves: [[A, 0], [B, C]] has [[A^-1, 0], [-C^-1 B A^-1, C^-1]]."""
    k, half = len(L), len(L) // 2
    if k <= LEAF:
        L[:] = np.tril(np.linalg.inv(L))
        return
    invert_lower(L[:half, :half])
    invert_lower(L[half:, half:])
    L[half:, :half] = -L[half:, half:] @ (L[half:, :half] @ L[:half, :half])


def inverse_factor(H: np.ndarray, damp: float) -> tuple[np.ndarray, float]:
    """U, float64 upper, with U^T U = (H + damp mean(diag H) I)^-1; and the damping, as the reference."""
    damped = H + damp * np.diag(H).mean() * np.eye(len(H))
    try:
        L = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError:
        return gptq.inverse_factor(H, damp)  # which raises the damping
    size = np.linalg.norm(L)
    invert_lower(L)
    if not (size * np.linalg.norm(L)) ** 2 < CONDITION:
        return gptq.inverse_factor(H, damp)
    return L[::-1, ::-1], damp


@kernel()
def gptq_columns(W1, U1, scales, zeros, top, start, end, first, last, codes, Err1):
    """Columns start .. end - 1 of a block, for groups first .. last - 1 of sixteen rows.

    W1 [n, B] is updated; U1 [B, B]; scales and zeros [end - start, n], a row for each column; codes [n, B] and Err1
    [n, B] are written. n is a multiple of 16.
    """
    n, B = W1.shape
    flat, all_codes, all_errors = W1.reshape(-1), codes.reshape(-1), Err1.reshape(-1)
    tile = np.empty(B * LANES, np.float32)
    code_tile, error_tile = np.empty(LANES, np.uint8), np.empty(LANES, np.float32)
    for group in range(first, last):
        row = LANES * group
        for i in range(start, B):
            for lane in range(LANES):
                tile[LANES * i + lane] = flat[(row + lane) * B + i]
        for j in range(start, end):
            scale, zero = load(scales, (j - start) * n + row), load(zeros, (j - start) * n + row)
            w = load(tile, LANES * j)
            v = w / scale
            v = select(v < -FAR, splat(-FAR), select(v > FAR, splat(FAR), v))
            v = ((v + MAGIC) - MAGIC) + zero
            v = select(v > 0.0, v, splat(0.0))
            code = select(v < top, v, splat(top))
            error = (w - (code - zero) * scale) / splat(U1[j, j])
            store(code_tile, 0, to_int(code))
            store(error_tile, 0, error)
            for lane in range(LANES):
                all_codes[(row + lane) * B + j] = code_tile[lane]
                all_errors[(row + lane) * B + j] = error_tile[lane]
            for i in range(j, B):
                store(tile, LANES * i, load(tile, LANES * i) - error * U1[j, i])
        for i in range(start, B):
            for lane in range(LANES):
                flat[(row + lane) * B + i] = tile[LANES * i + lane]


@ops.fast_path("gptq", "int", backend="numba")
def quantize(w, H, grid, block_size, damp, act_order, static_groups, group_params):
    """The reference's loop (`methods.gptq._quantize`); columns of a block whose parameters are known go in one call."""
    W, H, dead = gptq.without_dead(w, H)
    n, k = W.shape
    group = grid.group_index(k)
    bounds = np.append(np.flatnonzero(np.diff(group, prepend=-1)), k)
    fitted = [None] * (len(bounds) - 1)
    if static_groups:
        fitted = [grid.fit(W[:, start:end]) for start, end in pairwise(bounds)]
    order = np.arange(k)
    if act_order:
        order = np.argsort(-np.diag(H), kind="stable")
        W, H = W[:, order], H[order][:, order]
    if static_groups:
        group = group[order]
    U, damp = inverse_factor(H, damp)
    U = U.astype(np.float32)

    rows = -(-n // LANES) * LANES  # W1 and what belongs to it are padded to whole groups of sixteen rows
    codes, losses = np.empty((n, k), np.uint8), np.empty(k)
    for i1 in range(0, k, block_size):
        i2 = min(i1 + block_size, k)
        W1, Err1 = np.zeros((rows, i2 - i1), np.float32), np.zeros((rows, i2 - i1), np.float32)
        W1[:n] = W[:, i1:i2]
        block_codes, U1 = np.empty((rows, i2 - i1), np.uint8), np.ascontiguousarray(U[i1:i2, i1:i2])
        j = i1
        while j < i2:
            if fitted[group[j]] is None:
                end = bounds[group[j] + 1]
                Wg = W[:, j:end]
                if group_params == "fresh":
                    Wg = Wg - Err1[:n, : j - i1] @ U[i1:j, j:end]
                fitted[group[j]] = grid.fit(Wg)
            until = j  # the columns from j on whose parameters are known
            while until < i2 and fitted[group[until]] is not None:
                until += 1
            params = np.ones((2, until - j, rows), np.float32)
            for g in np.unique(group[j:until]):
                params[:, group[j:until] == g, :n] = np.array(fitted[g])[:, None]
            scales, zeros = params.reshape(2, -1)

            def run(first, last, j=j, until=until, scales=scales, zeros=zeros):
                gptq_columns(W1, U1, scales, zeros, top, j - i1, until - i1, first, last, block_codes, Err1)  # noqa: B023

            top = np.float32(grid.max_code)
            in_pieces(run, rows // LANES, 8)
            j = until
        codes[:, i1:i2], errors = block_codes[:n], Err1[:n]
        losses[i1:i2] = 0.5 * np.square(errors, dtype=np.float64).sum(axis=0)
        update, rest = U[i1:i2, i2:], max(1, CHUNK // max(1, k - i2))
        for row in range(0, n, rest):  # few enough rows that the product is still in the cache when it is subtracted
            W[row : row + rest, i2:] -= errors[row : row + rest] @ update

    back = np.argsort(order)
    params = (np.stack(each, axis=1) for each in zip(*fitted, strict=True))
    fields = grid.fields(codes[:, back], *params, g_idx=group[back])
    return gptq.Result(ops.pack(fields, grid.name, (n, k)), losses[back], damp, dead)
