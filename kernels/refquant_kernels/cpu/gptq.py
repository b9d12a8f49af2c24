"""gptq on uniform grids: `methods.gptq`, sixteen rows at a time, with one factorization and no inverse.

4096 x 4096 weights, blocks of 128 columns. Must do: 68.7 GFLOP (n k^2) for what the columns owe to those of earlier
blocks; 2.1 GFLOP within the blocks, and a division and a rounding per weight; for the factor 23 GFLOP (Cholesky,
k^3 / 3) in float64. Little to move: H once, and its factor, packed, for every 512 rows.

Four ideas:

- **The factor.** The reference follows the paper: invert H by one Cholesky, then factor the inverse by another. With J
  the reversal of order and J H J = L L^T, R = J L J is upper triangular, and::

      H = R R^T        H^-1 = R^-T R^-1        so R^-1 is the paper's U

- **Not even U is needed**, but for its blocks on the diagonal. Let E be the paper's errors and D what the columns are
  off by, weights minus decoded. Column after column E U = D, so E = D R; and of the columns before a block B, from
  U R = 1::

      - E_< U_<B  =  D_< R_<< U_<< R_<B U_BB  =  (D_< R_<B) U_BB

  So a block takes what it owes from D and R in a product of n x i and i x 128, when its turn comes; several blocks
  share the part that is known when the first of them begins, since wider products are faster (`gemm`). (Where H is so
  near singular that the two ways could part, the reference's own function is called.)
- **No row depends on another.** What all rows need of R is packed once; then a thread takes 512 rows through all
  columns, and no thread waits for another before the end.
- **The loop within a block** touches each row by itself. Sixteen rows, one a lane, are transposed into 8 KiB, and all
  of the block's columns are gone through before they leave the cache; NumPy passes over all rows for every column.

In a block every operation is the reference's, rounded alike. The codes differ where the last place of what comes from
other blocks decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refquant import ops
from refquant.methods import gptq
from refquant_kernels.cpu.compile import in_pieces, kernel
from refquant_kernels.cpu.gemm import HAS_TILES, Packed, add_product, pack, pack_transposed
from refquant_kernels.cpu.int_grids import nearest_code
from refquant_kernels.cpu.simd import LANES, load, splat, store, to_float, turn

PANEL = 128  # columns of a factor that are finished together, of a triangle that is inverted whole
SPREAD = 1e10  # of the factor's squared diagonal; beyond it the reference's second factorization may fail
WIDE = 512  # columns for which what is left of them is one product
LEAST, MOST = 256, 512  # rows that a thread takes through all columns at once


@kernel()
def factor_square(A):
    """Turn a symmetric matrix in place into its upper factor, U^T U; return the row that is not positive, or -1."""
    k = len(A)
    for j in range(k):
        row = A[j]
        if not row[j] > 0:
            return j
        size = np.sqrt(row[j])
        for i in range(k):
            row[i] = row[i] / size if i >= j else 0
        for i in range(j + 1, k):
            other, factor = A[i], row[i]
            for c in range(i, k):
                other[c] -= factor * row[c]
    return -1


@kernel()
def invert_triangle(U):
    """Turn an upper triangle in place into its inverse X: from the last row up, X_j = (e_j - U_j,> X_>) / U_jj."""
    k = len(U)
    row = np.empty(k, U.dtype)
    for j in range(k - 1, -1, -1):
        row[:] = 0
        row[j] = 1
        for i in range(j + 1, k):
            other, factor = U[i], U[j, i]
            for c in range(i, k):
                row[c] -= factor * other[c]
        size = U[j, j]
        for c in range(k):
            U[j, c] = row[c] / size


def invert_upper(U: np.ndarray, threads: bool = True) -> None:
    """The same of a larger one, by halves: [[A, B], [0, C]] has [[A^-1, -A^-1 B C^-1], [0, C^-1]]."""
    k, half = len(U), len(U) // 2
    if k <= PANEL:
        invert_triangle(U)
        return
    invert_upper(U[:half, :half], threads)
    invert_upper(U[half:, half:], threads)
    left, corner = np.empty((half, k - half), U.dtype), U[:half, half:]
    add_product(left, U[:half, :half], pack(corner, U.dtype), -1, threads, fresh=True)
    add_product(corner, left, pack(U[half:, half:], U.dtype), 1, threads, fresh=True)


class Slabs:
    """The lower triangle of a matrix [k, k], float64: WIDE columns a slab, from the row on where it begins.

    Half the memory of the square: fresh memory costs as much as the arithmetic on it.
    """

    def __init__(self, k: int):
        self.k, self.slabs = k, [np.empty((k - q, min(WIDE, k - q))) for q in range(0, k, WIDE)]

    def views(self, rows: slice, columns: slice) -> list[tuple[np.ndarray, int]]:
        """What each slab has of these rows and columns, and its first column."""
        found = []
        for q in range(columns.start // WIDE, -(-columns.stop // WIDE)):
            first, start, end = q * WIDE, max(columns.start, q * WIDE), min(columns.stop, (q + 1) * WIDE)
            part = self.slabs[q][max(0, rows.start - first) : rows.stop - first, start - first : end - first]
            found.append((part, start))
        return found

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """These rows and columns, rows.start >= columns.start; above the diagonal anything may stand."""
        views = self.views(rows, columns)
        if len(views) == 1:
            return views[0][0]
        out = np.zeros((rows.stop - rows.start, columns.stop - columns.start))
        for view, start in views:
            at = start - columns.start
            out[len(out) - len(view) :, at : at + view.shape[1]] = view
        return out

    def turned(self, rows: slice, columns: slice) -> np.ndarray:
        """Of the matrix with rows and columns in reverse order, an upper triangle, these rows and columns."""
        k = self.k
        return self.block(slice(k - rows.stop, k - rows.start), slice(k - columns.stop, k - columns.start))[::-1, ::-1]


def cholesky(H: np.ndarray, shift: float = 0.0) -> Slabs:
    """Return the lower factor of H + shift I, float64; raise `LinAlgError` where that is not positive definite.

    What is above the diagonal does not count. Panel after panel, each first rid of what is left of it: nearly all of it
    is one product for each slab. LAPACK is not called even for the rest: its threads wait for more to do in a busy
    loop, and then ours have no core to themselves.
    """
    k = len(H)
    L = Slabs(k)
    for j in range(0, k, PANEL):
        end = min(k, j + PANEL)
        first = j // WIDE * WIDE  # of the slab that has all of the panel: WIDE is a multiple of PANEL
        panel = L.slabs[j // WIDE][j - first :, j - first : end - first]
        panel[:] = H[j:, j:end]
        for view, _ in L.views(slice(j, k), slice(0, j)):
            add_product(panel, view, pack_transposed(view[: end - j]), -1)
        square, below = panel[: end - j], panel[end - j :]
        U = square + shift * np.eye(len(square))
        if factor_square(U) >= 0:
            raise np.linalg.LinAlgError("not positive definite")
        square[:] = U.T
        if len(below):
            invert_triangle(U)
            add_product(below, below, pack(U, U.dtype), fresh=True)
    return L


def factor(H: np.ndarray, damp: float) -> tuple[Callable, np.ndarray | None, float]:
    """R, float64, upper, with R R^T = H + damp mean(diag H) I; U where the reference made it; the damping, as there.

    R is a function of slices of rows and columns. What is below its diagonal does not count.
    """
    try:
        L = cholesky(H[::-1, ::-1], damp * np.diag(H).mean(dtype=np.float64))
        size = np.abs(np.concatenate([np.diag(slab) for slab in L.slabs]))
        if size.max() ** 2 < SPREAD * size.min() ** 2:
            return L.turned, None, damp
    except np.linalg.LinAlgError:
        pass
    U, damp = gptq.inverse_factor(H.astype(np.float64), damp)  # which raises the damping
    R = U.copy()
    invert_upper(R)
    return lambda rows, columns: R[rows, columns], U, damp


@kernel()
def to_lanes(W, n, stride, width, lanes):
    """Columns 0 .. width - 1 of n rows, `stride` apart, to lanes [groups of sixteen rows, padded width, 16], flat.

    A row has room for the padding; the last one stands for those that a group lacks.
    """
    starts, padded = np.empty(LANES, np.int64), -(-width // LANES) * LANES
    for row in range(0, n, LANES):
        for i in range(LANES):
            starts[i] = min(row + i, n - 1) * stride
        for j in range(0, padded, LANES):
            turn(W, starts, j, lanes, (row // LANES * padded + j) * LANES, LANES)


@kernel()
def gptq_columns(W1, U1, scales, zeros, which, top, start, end, codes, decoded, Err1, first, last):
    """Columns start .. end - 1 of a block, for groups first .. last - 1 of sixteen rows.

    W1, codes, decoded and Err1, each [groups, padded width, 16], flat, are written; U1 [width, width]; scales and zeros
    [g, 16 groups], flat, of which column j has that with the number which[j - start].
    """
    B = len(U1)
    padded = -(-B // LANES) * LANES
    rows = codes.size // padded
    for row in range(LANES * first, LANES * last, LANES):
        tile = row * padded
        for j in range(start, end):
            at, its = tile + LANES * j, which[j - start] * rows + row
            scale, zero, w = load(scales, its), load(zeros, its), load(W1, at)
            code = nearest_code(w, scale, zero, top)
            value = (to_float(code) - zero) * scale
            error = (w - value) / splat(U1[j, j])
            store(codes, at, code)
            store(decoded, at, value)
            store(Err1, at, error)
            for i in range(j + 1, B):
                other = tile + LANES * i
                store(W1, other, load(W1, other) - error * U1[j, i])


@kernel()
def from_lanes(codes, decoded, Err1, width, W, D, all_codes, first, losses):
    """Put a block, which begins with column `first`, where it belongs: its codes, and D = W - decoded; all [n, k].

    Its losses [width] are half the sums of Err1^2 over the rows.
    """
    (n, k), padded = W.shape, -(-width // LANES) * LANES
    flat, differences, results = W.reshape(-1), D.reshape(-1), all_codes.reshape(-1)
    starts, sums = np.empty(LANES, np.int64), np.zeros(padded * LANES)
    square, of_codes = np.empty(LANES * LANES, np.float32), np.empty(LANES * LANES, np.uint8)
    for row in range(0, n, LANES):
        tile, rows = row * padded, min(LANES, n - row)
        for j in range(width):
            errors, totals = Err1[tile + LANES * j :][:LANES], sums[LANES * j :][:LANES]
            for lane in range(LANES):
                totals[lane] += np.float64(errors[lane]) * np.float64(errors[lane]) if lane < rows else 0.0
        for j in range(0, width, LANES):
            for i in range(LANES):
                starts[i] = tile + LANES * (j + i)
            turn(decoded, starts, 0, square, 0, LANES)
            turn(codes, starts, 0, of_codes, 0, LANES)
            for r in range(rows):
                at = (row + r) * k + first + j
                if j + LANES <= width:
                    store(differences, at, load(flat, at) - load(square, LANES * r))
                    store(results, at, load(of_codes, LANES * r))
                else:
                    for i in range(width - j):
                        differences[at + i] = flat[at + i] - square[LANES * r + i]
                        results[at + i] = of_codes[LANES * r + i]
    for j in range(width):
        losses[j] = 0.5 * sums[LANES * j : LANES * (j + 1)].sum()


@dataclass(frozen=True)
class Step:
    """A block of columns, i1 .. i2 - 1, and what all rows need for it; its open groups have `width` columns from i1."""

    i1: int
    i2: int
    width: int
    since: int  # columns before it are in `before`, which is shared by the blocks up to column `until`
    until: int
    U1: np.ndarray  # float32 [width, width]
    before: Packed | None  # R[:since, since:until], with the first block of those
    recent: Packed  # R[since:i1, i1 : i1 + width]
    own: Packed  # U1


def plan(R, U, group, bounds, known: set, block_size: int) -> list[Step]:
    """The steps, for groups of which some are known before."""
    k, steps, since, until = len(group), [], 0, 0
    for i1 in range(0, k, block_size):
        i2 = min(i1 + block_size, k)
        if i1 == 0:  # nothing has been updated yet
            known = known | {group[0]}
        opened = set(group[i1:i2]) - known
        known = known | opened
        width = max([i2] + [bounds[g + 1] for g in opened]) - i1
        starts = i1 + width > until
        if starts:
            since, until = i1, min(k, i1 + max(width, WIDE))
        steps.append((i1, i2, width, since, until, starts))

    def fill(first, last):
        for at in range(first, last):
            i1, i2, width, since, until, starts = steps[at]
            square = slice(i1, i1 + width), slice(i1, i1 + width)
            if U is None:
                U1 = np.triu(R(*square))
                invert_upper(U1, threads=False)  # this is one already
                U1 = U1.astype(np.float32)
            else:
                U1 = U[square].astype(np.float32)
            before = pack(R(slice(0, since), slice(since, until)), np.float32) if starts else None
            recent = pack(R(slice(since, i1), slice(i1, i1 + width)), np.float32)
            steps[at] = Step(i1, i2, width, since, until, U1, before, recent, pack(U1, np.float32))

    in_pieces(fill, len(steps), 1)
    return steps


def go_through(W, grid, steps, group, bounds, fitted, fresh, codes):
    """All columns of some rows, W [n, k], whose codes are written; return (losses [k], scales and zeros [n, G])."""
    n, k = W.shape
    groups = -(-n // LANES)
    D, losses, top = np.empty((n, k), np.float32), np.empty(k), np.float32(grid.max_code)
    for step in steps:
        i1, i2, U1 = step.i1, step.i2, step.U1
        if step.before is not None:  # of the next columns, what they owe to all columns before i1
            owed = np.empty((n, step.until - i1), np.float32)
            add_product(owed, D[:, :i1], step.before, threads=False, fresh=True)
        owed_here = owed[:, i1 - step.since : i1 - step.since + step.width].copy()
        add_product(owed_here, D[:, step.since : i1], step.recent, threads=False)
        room = np.zeros((n, -(-step.width // LANES) * LANES), np.float32)
        updated = room[:, : step.width]
        updated[:] = W[:, i1 : i1 + step.width]
        add_product(updated, owed_here, step.own, threads=False)

        B, j = i2 - i1, i1
        size = groups * LANES * -(-B // LANES) * LANES
        W1, Err1, decoded = (np.empty(size, np.float32) for _ in range(3))
        block_codes, U_block = np.empty(size, np.uint8), np.ascontiguousarray(U1[:B, :B])
        to_lanes(room.reshape(-1), n, room.shape[1], B, W1)
        while j < i2:
            if fitted[group[j]] is None:
                first, end = j - i1, bounds[group[j] + 1] - i1
                Wg = updated[:, first:end]
                if fresh and first:
                    Err = np.ascontiguousarray(Err1.reshape(groups, -1, LANES)[:, :first].swapaxes(1, 2))
                    Wg, of_rows = Wg.copy(), Err.reshape(-1, first)[:n]
                    add_product(Wg, of_rows, pack(U1[:first, first:end], np.float32), -1, threads=False)
                fitted[group[j]] = grid.fit(Wg)
            until = j  # the columns from j on whose parameters are known
            while until < i2 and fitted[group[until]] is not None:
                until += 1
            present, which = np.unique(group[j:until], return_inverse=True)
            params = np.ones((2, len(present), groups * LANES), np.float32)
            for i, g in enumerate(present):
                params[:, i, :n] = fitted[g]
            scales, zeros = params.reshape(2, -1)
            given = (W1, U_block, scales, zeros, which, top, j - i1, until - i1, block_codes, decoded, Err1)
            if HAS_TILES:  # a thread has these rows
                gptq_columns(*given, 0, groups)
            else:
                in_pieces(lambda a, b, given=given: gptq_columns(*given, a, b), groups, 8)
            j = until
        from_lanes(block_codes, decoded, Err1, B, W, D, codes, i1, losses[i1:i2])
    return losses, *(np.stack(each, axis=1) for each in zip(*fitted, strict=True))


@ops.fast_path("gptq", "int", backend="numba")
def quantize(w, H, grid, block_size, damp, act_order, static_groups, group_params):
    """The reference's loop (`methods.gptq._quantize`), for some rows after the other: none depends on another."""
    W, dead = np.ascontiguousarray(w), np.flatnonzero(np.diag(H) == 0)
    if dead.size:  # otherwise nothing is copied
        W, H, dead = gptq.without_dead(w, H)
    n, k = W.shape
    group = grid.group_index(k)
    bounds = np.append(np.flatnonzero(np.diff(group, prepend=-1)), k)
    order, slots = np.arange(k), group
    if act_order:
        order = np.argsort(-np.diag(H), kind="stable")
        H = H[order][:, order]
    if static_groups:
        slots = group[order]
    R, U, damp = factor(H, damp)
    steps = plan(R, U, slots, bounds, set(group) if static_groups else set(), block_size)
    size = -(-min(MOST, max(LEAST, -(-n // 8))) // LANES) * LANES  # not a matter of the threads: losses are sums
    codes, results = np.empty((n, k), np.uint8), [None] * -(-n // size)

    def run(first, last):
        for at in range(first, last):
            part = slice(size * at, size * at + size)
            rows, fitted = W[part], [None] * (len(bounds) - 1)
            if static_groups:
                fitted = [grid.fit(rows[:, start:end]) for start, end in pairwise(bounds)]
            if act_order:
                rows = np.take(rows, order, axis=1)
            if not static_groups:
                fitted[slots[0]] = grid.fit(rows[:, : bounds[1]])  # nothing has been updated yet
            results[at] = go_through(rows, grid, steps, slots, bounds, fitted, group_params == "fresh", codes[part])

    if HAS_TILES:
        in_pieces(run, len(results), 1)
    else:
        run(0, len(results))  # BLAS has threads of its own; only the columns go on ours
    back = np.argsort(order)
    losses, scales, zeros = zip(*results, strict=True)
    params = np.concatenate(scales), np.concatenate(zeros)
    fields = grid.fields(codes[:, back] if act_order else codes, *params, g_idx=slots[back])
    return gptq.Result(ops.pack(fields, grid.name, (n, k)), sum(losses)[back], damp, dead)
