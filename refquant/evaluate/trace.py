"""GPTQ with every intermediate state kept, for small layers that somebody wants to watch.

The same steps as `methods.gptq` in float64, without blocks: after step j, the first j columns (of the loop's order) are
levels of the grid, and the others hold what they were moved to. A test holds the two to the same result.
"""

from dataclasses import dataclass

import numpy as np

from refquant.errors import BadInput
from refquant.evaluate.layer import layer_error
from refquant.grids import as_grid, check_weights
from refquant.methods import gptq

LARGEST = 1 << 24  # numbers kept


@dataclass(frozen=True)
class Trace:
    """What happened, step by step; columns stand where the layer has them.

    states : float64 [k + 1, n, k], the weights before the first step and after each.
    order : int [k], the column that each step quantizes.
    errors : float64 [k + 1], relative squared output error of each state (see `evaluate.layer_error`).
    rounded_errors : float64 [k + 1], the same when the columns not yet quantized stay as they are: RTN on the way.
    """

    states: np.ndarray
    order: np.ndarray
    errors: np.ndarray
    rounded_errors: np.ndarray


def trace(w: np.ndarray, H: np.ndarray, grid, damp: float = 0.01, act_order: bool = False) -> Trace:
    """Quantize `w` [n, k] with the Hessian `H` [k, k] as GPTQ does, and keep every state.

    Groups are fitted before the first step (GPTQ's static groups), so that each step changes one thing.

    Raises
    ------
    BadInput, UnknownName, NotPositiveDefinite
        As `gptq.quantize`; also for a layer whose states would take more than 2^24 numbers.
    """
    w = check_weights(w)
    n, k = w.shape
    if n * k * (k + 1) > LARGEST:
        raise BadInput(
            f"a trace keeps n k (k + 1) numbers, at most {LARGEST}; the layer is {n} by {k}: take a part of it"
        )
    grid = as_grid(grid, w)
    W, H, _ = gptq.without_dead(w, gptq.check_hessian(H, k, damp))
    W = W.astype(np.float64)
    scales, zeros = (each[:, grid.group_index(k)] for each in grid.fit_groups(w))  # [n, k]
    order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(k)
    U, _ = gptq.inverse_factor(H[order][:, order], damp)

    states, plain = np.empty((k + 1, n, k)), W.copy()
    states[0] = W
    errors, rounded = np.zeros(k + 1), np.zeros(k + 1)
    for step, j in enumerate(order):
        level = grid.decode(grid.encode(W[:, j], scales[:, j], zeros[:, j]), scales[:, j], zeros[:, j])
        err = (W[:, j] - level) / U[step, step]
        W[:, order[step:]] -= np.outer(err, U[step, step:])
        W[:, j] = level
        plain[:, j] = grid.decode(grid.encode(w[:, j], scales[:, j], zeros[:, j]), scales[:, j], zeros[:, j])
        states[step + 1] = W
        errors[step + 1], rounded[step + 1] = layer_error(w, W, H), layer_error(w, plain, H)
    return Trace(states, order, errors, rounded)
