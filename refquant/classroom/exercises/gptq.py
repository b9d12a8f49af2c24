"""Assignment 3, GPTQ: the Hessian, dead columns and damping, the factor, one column's compensation, a block, all.

    H = 2/m X^T X        U upper, U^T U = H^-1        err_j = (w_j - q_j) / U_jj        W[:, j+1:] -= err_j U[j, j+1:]

Right answers: the steps of `refquant.methods.gptq` in float64, on a grid with one scale and zero-point to a row, which
the caller gives. The layers are small and no weight comes near a tie, so the rounding is the same in any arithmetic.
"""

import numpy as np

from refquant.classroom.exercise import Case, Exercise, Mistake, Output
from refquant.classroom.exercises.rtn import clear_of_ties


def hessian(x):
    """H [k, k] of inputs x [m, k]."""
    return 2 / len(x) * x.T @ x


def prepare(w, H, damp):
    """Weights and H with dead columns out of the way and the diagonal damped."""
    w, H = w.copy(), H.copy()
    dead = np.diag(H) == 0
    w[:, dead] = 0
    H[dead, dead] = 1
    return w, H + damp * np.diag(H).mean() * np.eye(len(H))


def factor(H):
    """The upper U with U^T U = H^-1."""
    return np.linalg.cholesky(np.linalg.inv(H)).T


def rounded(w, scale, zero, bits):
    """Weights [n] or [n, k] on the grid."""
    shape = (-1,) + (1,) * (w.ndim - 1)
    scale, zero = scale.reshape(shape), zero.reshape(shape)
    return (np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1) - zero) * scale


def compensate(w, q, j, U, sign=1, row=True, power=1):
    """W after column j became q [n]: the columns after j make up for the error."""
    w = w.copy()
    err = (w[:, j] - q) / U[j, j] ** power
    w[:, j] = q
    w[:, j + 1 :] -= sign * np.outer(err, U[j, j + 1 :] if row else U[j + 1 :, j])
    return w


def block(w, first, last, U, scale, zero, bits, lazy=True, seen=None):
    """W after the columns first..last-1 were quantized; the columns after the block updated once, at the end."""
    w = w.copy()
    for j in range(first, last):
        q = rounded(w[:, j], scale, zero, bits)
        if seen is not None:
            seen.append(w[:, j] / scale)
        step = compensate(w, q, j, U)
        w = step if lazy else np.concatenate([step[:, :last], w[:, last:]], axis=1)
    return w


def quantize(w, H, scale, zero, bits, damp, size=None, seen=None, lazy=True):
    """The whole method: prepare, factor, block by block."""
    w, H = prepare(w, H, damp)
    U = factor(H)
    size = size or w.shape[1]
    for first in range(0, w.shape[1], size):
        w = block(w, first, min(first + size, w.shape[1]), U, scale, zero, bits, lazy, seen)
    return w


def output_error(w, q, H):
    """Squared output error per token of the layer, summed over its outputs."""
    return 0.5 * np.einsum("ij,jk,ik", w - q, H, w - q)


# ---- data


def inputs(rng, m, k, dead=0):
    """Correlated inputs, float64 [m, k]; `dead` columns are 0."""
    x = rng.normal(size=(m, k)) @ (np.eye(k) + 0.5 * rng.normal(size=(k, k)) / np.sqrt(k) * 2)
    x[:, rng.permutation(k)[:dead]] = 0
    return x


def layer(n, k, bits=4, dead=0, damp=0.01, first=None, size=None):
    """A maker of a layer on which no rounding is near a tie, with the arguments for `block` or `quantize`."""

    def make(rng):
        while True:
            w, H = rng.normal(size=(n, k)) * 0.05, hessian(inputs(rng, 3 * k, k, dead))
            low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
            scale = (high - low) / (2**bits - 1)
            zero, seen = np.rint(-low / scale), []
            if first is None:
                args = w, H, scale, zero, bits, damp, size
                quantize(*args, seen=seen)
            else:
                args = w, first, first + size, factor(prepare(w, H, damp)[1]), scale, zero, bits
                block(*args, seen=seen)
            if clear_of_ties(np.concatenate(seen)):
                return args

    return make


def for_prepare(dead):
    """A maker of (w, H, damp)."""
    return lambda rng: (rng.normal(size=(3, 10)), hessian(inputs(rng, 40, 10, dead)), float(rng.uniform(0.005, 0.05)))


def definite(rng):
    """A positive definite H."""
    k = int(rng.integers(5, 12))
    return (hessian(inputs(rng, 4 * k, k)),)


def for_compensate(rng):
    """W, the rounded column, its number, U."""
    w, (H,) = rng.normal(size=(4, 9)), definite(np.random.default_rng(rng.integers(2**32)))
    k = len(H)
    w, j = rng.normal(size=(4, k)), int(rng.integers(1, k - 1))
    return w, w[:, j] + rng.uniform(-0.1, 0.1, 4), j, factor(H)


# ---- mistakes


def damped_everywhere(w, H, damp):
    """Damping on every entry."""
    w, H = prepare(w, H, 0)
    return w, H + damp * np.diag(H).mean()


def damped_absolutely(w, H, damp):
    """Damping that ignores the size of H."""
    w, H = prepare(w, H, 0)
    return w, H + damp * np.eye(len(H))


def dead_ignored(w, H, damp):
    """Nothing done about dead columns."""
    return w, H + damp * np.diag(H).mean() * np.eye(len(H))


def dead_weights_kept(w, H, damp):
    """H repaired, weights not."""
    return w, prepare(w, H, damp)[1]


def no_compensation(w, H, scale, zero, bits, damp, size):
    """Round to nearest."""
    return rounded(prepare(w, H, damp)[0], scale, zero, bits)


def nothing_after_block(w, first, last, U, scale, zero, bits):
    """Only the block itself."""
    return block(w, first, last, U, scale, zero, bits, lazy=False)


def block_of_rtn(w, first, last, U, scale, zero, bits):
    """Round the block, compensate nothing."""
    w = w.copy()
    w[:, first:last] = rounded(w[:, first:last], scale, zero, bits)
    return w


def only_after_block(w, first, last, U, scale, zero, bits):
    """Round the block's columns as they were, update only what comes after."""
    new = w.copy()
    for j in range(first, last):
        q = rounded(w[:, j], scale, zero, bits)
        new[:, last:] -= np.outer((w[:, j] - q) / U[j, j], U[j, last:])
        new[:, j] = q
    return new


def errors_unscaled(w, first, last, U, scale, zero, bits):
    """The error not divided by U_jj."""
    w = w.copy()
    for j in range(first, last):
        w = compensate(w, rounded(w[:, j], scale, zero, bits), j, U, power=0)
    return w


def against_rtn(args, got):
    """Output error relative to RTN on the same grid."""
    w, H, scale, zero, bits, damp, _ = args
    w, H = prepare(w, H, damp)
    ratio = output_error(w, np.asarray(got), H) / output_error(w, rounded(w, scale, zero, bits), H)
    return f"output error {ratio:.3f} of RTN's"


BLOCK_HINT = "the columns after the block were never updated: apply the block's errors to them, with U[j, last:]"

EXERCISES = (
    Exercise(
        "gptq.hessian",
        (Output("H", 1e-6, "largest"),),
        (Case("inputs [tokens, k]", 2, lambda rng: (inputs(rng, 30, 7),)),),
        hessian,
        (
            Mistake(
                "H is [k, k]: the sum over tokens of x xᵀ, so xᵀ x for x [tokens, k]", lambda x: 2 / len(x) * x @ x.T
            ),
            Mistake(
                "H is [k, k]: the sum over tokens of x xᵀ, so xᵀ x for x [tokens, k]",
                lambda x: 2 / x.shape[1] * x @ x.T,
            ),
            Mistake("the factor 2 is missing (the second derivative of a square)", lambda x: x.T @ x / len(x)),
            Mistake("a sum, but not the mean: divide by the number of tokens", lambda x: 2 * x.T @ x),
            Mistake("divide by the number of tokens, not of inputs", lambda x: 2 / x.shape[1] * x.T @ x),
        ),
    ),
    Exercise(
        "gptq.prepare",
        (Output("W", 1e-6, "largest"), Output("H", 1e-6, "largest")),
        (Case("damping", 2, for_prepare(0)), Case("dead columns", 2, for_prepare(2))),
        prepare,
        (
            Mistake("damping goes on the diagonal only: add it times np.eye", damped_everywhere),
            Mistake(
                "damping is a part of the mean of diag(H), or it would depend on the units of x", damped_absolutely
            ),
            Mistake(
                "a column that no input reached has H_jj = 0: set that to 1, and the column's weights to 0",
                dead_ignored,
            ),
            Mistake("the weights of a dead column must become 0, too", dead_weights_kept),
        ),
    ),
    Exercise(
        "gptq.factor",
        (Output("U", 1e-6, "largest"),),
        (Case("a positive definite H", 2, definite),),
        factor,
        (
            Mistake("that is the lower factor: transpose it (or cholesky(..., upper=True))", lambda H: factor(H).T),
            Mistake("that is the factor of H: invert H first", lambda H: np.linalg.cholesky(H).T),
            Mistake("that is the lower factor of H: invert H first, then take the upper factor", np.linalg.cholesky),
            Mistake("that is the inverse itself: its Cholesky factor is wanted", np.linalg.inv),
            Mistake(
                "that has U Uᵀ = H⁻¹; wanted is Uᵀ U = H⁻¹, the Cholesky factor of the inverse",
                lambda H: np.linalg.inv(np.linalg.cholesky(H)).T,
            ),
        ),
    ),
    Exercise(
        "gptq.compensate",
        (Output("W", 1e-6, "largest"),),
        (Case("one column", 3, for_compensate),),
        compensate,
        (
            Mistake("the sign is turned: the columns after j get - err U[j, j+1:]", lambda *a: compensate(*a, sign=-1)),
            Mistake(
                "that is column j of U, which is 0 below the diagonal: take its row j",
                lambda *a: compensate(*a, row=False),
            ),
            Mistake("divide the error by U[j, j] once, not by its square", lambda *a: compensate(*a, power=2)),
            Mistake("the error must be divided by U[j, j]", lambda *a: compensate(*a, power=0)),
            Mistake(
                "column j itself must become q",
                lambda w, q, j, U: np.concatenate([w[:, : j + 1], compensate(w, q, j, U)[:, j + 1 :]], axis=1),
            ),
        ),
    ),
    Exercise(
        "gptq.block",
        (Output("W", 1e-6, "largest"),),
        (
            Case("the first block", 2, layer(3, 16, first=0, size=8)),
            Case("a block in the middle", 2, layer(3, 20, first=5, size=7)),
        ),
        block,
        (
            Mistake(BLOCK_HINT, nothing_after_block),
            Mistake(
                "the block was rounded without compensation: each column's error moves the columns after it",
                block_of_rtn,
            ),
            Mistake("inside the block, too, a column must be updated before it is rounded", only_after_block),
            Mistake("each error must be divided by U[j, j]", errors_unscaled),
            Mistake(
                "only columns first..last-1 are this block's",
                lambda w, first, last, *rest: block(w, first, w.shape[1], *rest),
            ),
        ),
    ),
    Exercise(
        "gptq.quantize",
        (Output("W", 1e-6, "largest"),),
        (
            Case("blocks that divide the width", 2, layer(4, 24, size=8)),
            Case("a short last block", 1, layer(4, 22, size=8)),
            Case("dead columns", 2, layer(4, 20, dead=2, size=10)),
        ),
        quantize,
        (
            Mistake("that is round to nearest: no column made up for another's error", no_compensation),
            Mistake(BLOCK_HINT, lambda *args: quantize(*args, lazy=False)),
            Mistake("the damping is missing", lambda w, H, s, z, b, damp, size: quantize(w, H, s, z, b, 0, size)),
        ),
        score=against_rtn,
    ),
)
