"""gptq on uniform grids: `methods.gptq`, sixteen rows at a time, with one factorization and no inverse.

4096 x 4096 weights, blocks of 128 columns. Must do: 68.7 GFLOP (n k^2) for what the columns owe to those of earlier
blocks, which are BLAS here as in the reference; 2.1 GFLOP within the blocks, and a division and a rounding per weight;
for the factor 23 GFLOP (Cholesky, k^3 / 3) in float64. Little to move: H twice, the differences once a block; of H and
its factor no more copies are made than one, since fresh memory costs as much as the arithmetic on it.

Three ideas:

- **The factor.** The reference follows the paper: invert H by one Cholesky, then factor the inverse by another. With J
  the reversal of order and J H J = L L^T, R = J L J is upper triangular, and::

      H = R R^T        H^-1 = R^-T R^-1        so R^-1 is the paper's U

- **Not even U is needed**, but for its blocks on the diagonal. Let E be the paper's errors and D what the columns are
  off by, weights minus decoded. Column after column E U = D, so E = D R; and of the columns before a block B, from
  U R = 1::

      - E_< U_<B  =  D_< R_<< U_<< R_<B U_BB  =  (D_< R_<B) U_BB

  So a block takes what it owes from D and R in a product of n x i and i x 128, when its turn comes; several blocks
  share the part that is known when the first of them begins, since BLAS is faster with wider products. (Where H is so
  near singular that the two ways could part, the reference's own function is called.)
- **The loop within a block** touches each row by itself. Sixteen rows, one a lane, are transposed into 8 KiB, and all
  of the block's columns are gone through before they leave the cache; NumPy passes over all rows for every column.

In a block every operation is the reference's, rounded alike. The codes differ where the last place of what comes from
other blocks decides.
"""

from itertools import pairwise

import numpy as np

from refquant import ops
from refquant.methods import gptq
from refquant_kernels.cpu.compile import in_pieces, kernel
from refquant_kernels.cpu.int_grids import nearest_code
from refquant_kernels.cpu.simd import LANES, load, splat, store, to_float

PANEL = 128  # columns of a factor that are finished together
LEAF = 64  # columns of a triangle that is inverted whole
SPREAD = 1e10  # of the factor's squared diagonal; beyond it the reference's second factorization may fail
WIDE = 512  # columns for which what they owe to all columns before them is one product


def invert_lower(L: np.ndarray) -> None:
    """Invert a lower triangle in place, by halves: [[A, 0], [B, C]] has [[A^-1, 0], [-C^-1 B A^-1, C^-1]]."""
    k, half = len(L), len(L) // 2
    if k <= LEAF:
        L[:] = np.tril(np.linalg.inv(L))
        return
    invert_lower(L[:half, :half])
    invert_lower(L[half:, half:])
    L[half:, :half] = -L[half:, half:] @ (L[half:, :half] @ L[:half, :half])


def invert_upper(R: np.ndarray) -> np.ndarray:
    """Return the inverse of an upper triangle, in float64."""
    L = np.array(R[::-1, ::-1], order="C")
    invert_lower(L)
    return L[::-1, ::-1]


def cholesky(A: np.ndarray) -> np.ndarray:
    """Turn a symmetric matrix, in place, into its lower factor; raise `LinAlgError` where it is not positive definite.

    Panel after panel, each first rid of what is left of it: nearly all of it is one product each, which BLAS does at
    twice the speed of LAPACK's factorization as NumPy comes with it.
    """
    for j in range(0, len(A), PANEL):
        panel, diagonal = A[j:, j : j + PANEL], A[j : j + PANEL, j : j + PANEL]
        panel -= A[j:, :j] @ A[j : j + PANEL, :j].T
        diagonal[:] = np.linalg.cholesky(diagonal)
        below = panel[PANEL:]
        below[:] = below @ np.linalg.inv(diagonal).T
        A[j : j + PANEL, j + PANEL :] = 0
    return A


def factor(H: np.ndarray, damp: float) -> tuple[np.ndarray, np.ndarray | None, float]:
    """R, float64 upper, with R R^T = H + damp mean(diag H) I; U where the reference made it; the damping, as there."""
    damped = np.array(H[::-1, ::-1], np.float64, order="C")
    damped.reshape(-1)[:: len(H) + 1] += damp * np.diag(H).mean(dtype=np.float64)
    try:
        L = cholesky(damped)
        size = np.abs(np.diag(L))
        if size.max() ** 2 < SPREAD * size.min() ** 2:
            return L[::-1, ::-1], None, damp
    except np.linalg.LinAlgError:
        pass
    U, damp = gptq.inverse_factor(H.astype(np.float64), damp)  # which raises the damping
    return invert_upper(U), U, damp


@kernel()
def gptq_columns(W1, U1, scales, zeros, top, start, end, first, last, codes, decoded, Err1):
    """Columns start .. end - 1 of a block, for groups first .. last - 1 of sixteen rows.

    W1 [n, B] is updated; U1 [B, B]; scales and zeros [end - start, n], a row for each column; codes, decoded
    and Err1, each [n, B], are written. n is a multiple of 16.
    """
    n, B = W1.shape
    flat, all_codes, all_decoded, all_errors = (
        W1.reshape(-1), codes.reshape(-1), decoded.reshape(-1), Err1.reshape(-1),
    )  # fmt: skip
    tile = np.empty(B * LANES, np.float32)
    code_tile, value_tile, error_tile = (
        np.empty(LANES, np.uint8), np.empty(LANES, np.float32), np.empty(LANES, np.float32),
    )  # fmt: skip
    for group in range(first, last):
        row = LANES * group
        for i in range(start, B):
            for lane in range(LANES):
                tile[LANES * i + lane] = flat[(row + lane) * B + i]
        for j in range(start, end):
            scale, zero = load(scales, (j - start) * n + row), load(zeros, (j - start) * n + row)
            w = load(tile, LANES * j)
            code = nearest_code(w, scale, zero, top)
            value = (to_float(code) - zero) * scale
            error = (w - value) / splat(U1[j, j])
            store(code_tile, 0, code)
            store(value_tile, 0, value)
            store(error_tile, 0, error)
            for lane in range(LANES):
                all_codes[(row + lane) * B + j] = code_tile[lane]
                all_decoded[(row + lane) * B + j] = value_tile[lane]
                all_errors[(row + lane) * B + j] = error_tile[lane]
            for i in range(j, B):
                store(tile, LANES * i, load(tile, LANES * i) - error * U1[j, i])
        for i in range(start, B):
            for lane in range(LANES):
                flat[(row + lane) * B + i] = tile[LANES * i + lane]


@ops.fast_path("gptq", "int", backend="numba")
def quantize(w, H, grid, block_size, damp, act_order, static_groups, group_params):
    """The reference's loop (`methods.gptq._quantize`); columns of a block whose parameters are known go in one call."""
    W, dead = w, np.flatnonzero(np.diag(H) == 0)
    if dead.size:  # otherwise nothing is copied
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
    R, U, damp = factor(H, damp)
    rows = -(-n // LANES) * LANES  # W1 and what belongs to it are padded to whole groups of sixteen rows
    codes, losses, D = np.empty((n, k), np.uint8), np.empty(k), np.empty((n, k), np.float32)
    top, done = np.float32(grid.max_code), 0
    for i1 in range(0, k, block_size):
        i2 = min(i1 + block_size, k)
        open_groups = [g for g in np.unique(group[i1:i2]) if fitted[g] is None]
        if i1 == 0 and open_groups:  # nothing has been updated yet
            fitted[group[0]] = grid.fit(W[:, : bounds[1]])
            open_groups = [g for g in open_groups if fitted[g] is None]
        width = max([i2] + [bounds[g + 1] for g in open_groups]) - i1  # the block, and what its groups have after it
        square = slice(i1, i1 + width), slice(i1, i1 + width)
        U1 = (invert_upper(R[square]) if U is None else U[square]).astype(np.float32)
        if i1 + width > done:  # of the next columns, what they owe to all columns before i1
            since, done = i1, min(k, i1 + max(width, WIDE))
            panel = np.array(R[:done, since:done], np.float32, order="C")
            owed = D[:, :i1] @ panel[:i1]
        here = slice(i1 - since, i1 - since + width)
        updated = W[:, i1 : i1 + width] + (owed[:, here] + D[:, since:i1] @ panel[since:i1, here]) @ U1
        B = i2 - i1
        if i1 == 0 or B < block_size:
            W1, Err1 = np.zeros((rows, B), np.float32), np.zeros((rows, B), np.float32)
            block_codes, decoded = np.empty((rows, B), np.uint8), np.empty((rows, B), np.float32)
        W1[:n] = updated[:, :B]
        U_block = np.ascontiguousarray(U1[:B, :B])
        j = i1
        while j < i2:
            if fitted[group[j]] is None:
                first, end = j - i1, bounds[group[j] + 1] - i1
                Wg = updated[:, first:end]
                if group_params == "fresh":
                    Wg = Wg - Err1[:n, :first] @ U1[:first, first:end]
                fitted[group[j]] = grid.fit(Wg)
            until = j  # the columns from j on whose parameters are known
            while until < i2 and fitted[group[until]] is not None:
                until += 1
            params = np.ones((2, until - j, rows), np.float32)
            for g in np.unique(group[j:until]):
                params[:, group[j:until] == g, :n] = np.array(fitted[g])[:, None]
            scales, zeros = params.reshape(2, -1)

            def run(first, last, start=j - i1, end=until - i1, scales=scales, zeros=zeros):
                gptq_columns(W1, U_block, scales, zeros, top, start, end, first, last, block_codes, decoded, Err1)  # noqa: B023

            in_pieces(run, rows // LANES, 8)
            j = until
        codes[:, i1:i2], D[:, i1:i2] = block_codes[:n], W[:, i1:i2] - decoded[:n]
        losses[i1:i2] = 0.5 * np.square(Err1[:n], dtype=np.float64).sum(axis=0)

    back = np.argsort(order)
    params = (np.stack(each, axis=1) for each in zip(*fitted, strict=True))
    fields = grid.fields(codes[:, back] if act_order else codes, *params, g_idx=group[back])
    return gptq.Result(ops.pack(fields, grid.name, (n, k)), losses[back], damp, dead)
