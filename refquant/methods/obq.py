"""OBQ: quantize one weight of a row at a time, always the one whose rounding costs least, and adjust the rest.

With H the Hessian of the layer's inputs, to round weight p of a row and move the weights F that are still free so
that the output changes least is, exactly::

    cost_p  = 0.5 (w_p - q_p)^2 / [H_F^-1]_pp            the output error that it adds
    w_F    -= (w_p - q_p) / [H_F^-1]_pp  H_F^-1[:, p]
    H_F^-1 -= H_F^-1[:, p] H_F^-1[p, :] / [H_F^-1]_pp    one step of elimination removes p from F

Every row has its own order, so its own inverse: n k^3 operations, for small layers. GPTQ (`methods.gptq`) takes the
same steps in one order for all the rows.

Source: Frantar, Singh, Alistarh, "Optimal Brain Compression" (arXiv 2208.11580), Algorithm 3 and the remark on outliers
below it; the step is that of Optimal Brain Surgeon (Hassibi and Stork, 1992).
"""

import numpy as np

from refquant import ops
from refquant.grids import as_grid, check_weights
from refquant.methods.gptq import Result, check_hessian, inverse_factor, without_dead
from refquant.quantized import find_format


def quantize(
    w: np.ndarray, H: np.ndarray, grid, damp: float = 0.01, outliers_first: bool = True, backend: str = "numpy"
) -> Result:
    """Quantize a small layer greedily, in float64.

    Parameters
    ----------
    w : float [n, k]
        The weights, outputs by inputs. Not changed.
    H : float [k, k]
        The Hessian of the layer's inputs, from `gptq.hessian`.
    grid : str or IntGrid
        Such as "int4-g128". The groups are fitted before the loop, since it visits their weights in no fixed order.
    damp : float
        As for `gptq.quantize`, raised in the same way when the factorization fails.
    outliers_first : bool
        A weight further than half a step from every level, that is, pushed off the end of its grid, is rounded as soon
        as it appears (the worst first). Left to the greedy rule it would come last, when nothing can make up for it.
    backend : str
        "numpy" is the definition; "numba" for the uniform grids.

    Raises
    ------
    BadInput, UnknownName, BackendUnavailable, NotPositiveDefinite

    Notes
    -----
    Against other code: trueobs.py of IST-DASLab/OBC (commit 9b7979b) does the same in float32 for 32 rows at once, with
    one group to a row.
    Leaves out: pruning, which takes the same step with q_p = 0, and the search over layers that the paper builds on it.
    """
    w = check_weights(w)
    grid = as_grid(grid, w)
    H = check_hessian(H, w.shape[1], damp)
    run = ops.find_op("obq", find_format(grid.name).family)
    return run(w, H, grid, damp, outliers_first, backend=backend)


def _quantize(w, H, grid, damp, outliers_first) -> Result:
    W, H, dead = without_dead(w, H)
    n, k = W.shape
    scales, zeros = grid.fit_groups(W)  # [n, G]
    group = grid.group_index(k)
    U, damp = inverse_factor(H, damp)

    codes, losses = np.empty((n, k), np.uint8), np.zeros(k)
    for row in range(n):
        w, Hinv = W[row].astype(np.float64), U.T @ U
        scale, zero = scales[row, group], zeros[row, group]  # [k]
        free = np.arange(k)
        while len(free):
            code = grid.encode(w, scale, zero)
            err = w - grid.decode(code, scale, zero)
            cost = 0.5 * err[free] ** 2 / np.diag(Hinv)[free]
            beyond = np.abs(err[free]) - scale[free] / 2
            first = np.argmax(beyond) if outliers_first and beyond.max() > 0 else np.argmin(cost)
            p = free[first]
            codes[row, p] = code[p]
            losses[p] += cost[first]
            w -= err[p] / Hinv[p, p] * Hinv[:, p]
            Hinv -= np.outer(Hinv[:, p], Hinv[p]) / Hinv[p, p]
            free = np.delete(free, first)
    return Result(ops.pack(grid.fields(codes, scales, zeros), grid.name, (n, k)), losses, damp, dead)


def _traffic(shape, name):
    """Read w and H and write the arrays; k^3 multiplications and subtractions a row."""
    n, k = shape
    return ops.Traffic(4 * n * k + 4 * k * k, find_format(name).nbytes(shape), 2 * n * k**3)


ops.register("obq", _quantize, _traffic)
