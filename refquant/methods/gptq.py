"""GPTQ: quantize a layer column by column, and let the columns not yet quantized make up for each column's error.

The layer's squared output error on the calibration inputs X is quadratic in the change of a row of weights, with the
Hessian H = 2/n X X^T, the same for every row. So the order of the columns can be the same for every row too, and one
Cholesky factor U (upper, U^T U = H^-1) holds all that is needed. For column j::

    q_j       = decode(encode(w_j))                      round on the group's grid
    err_j     = (w_j - q_j) / U_jj
    W[:, j:] -= err_j U[j, j:]                           the rest moves to where the output error is least

`0.5 sum err^2` is then exactly the output error per token (of the damped H): that is what `losses` reports.

Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ" (arXiv 2210.17323), Algorithm 1; its `Cholesky(H^-1)^T` is U here.
The code published with it: IST-DASLab/gptq, gptq.py, commit 2d65066. Sharing one order among the rows is the step from
OBQ (`methods.obq`), row i of U is row i of OBQ's step-i inverse over the root of its diagonal.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refquant import ops
from refquant.errors import BadInput, NotPositiveDefinite
from refquant.grids import as_grid, check_inputs, check_weights
from refquant.methods.registry import Method, gpu_rows, register_method
from refquant.quantized import Quantized, find_format


class Hessian:
    """The running mean H = 2/n sum x x^T over the tokens seen so far: `H` [k, k] and their number `n`.

    Tokens are counted, not sequences. The published code counts sequences, so its H (and its losses) are larger by the
    tokens per sequence; that factor cancels in the codes, except where dead columns (H_dd = 1) enter the mean diagonal.
    """

    def __init__(self, k: int, dtype=np.float32):
        self.H, self.n = np.zeros((k, k), dtype), 0

    def add(self, x: np.ndarray) -> "Hessian":
        """Take in inputs [..., k] of any batch shape; float64 only where the mean is, otherwise in float32."""
        x = check_inputs(x, len(self.H), self.H.dtype)
        self.n += len(x)
        self.H *= (self.n - len(x)) / self.n
        x = x * self.H.dtype.type(np.sqrt(2 / self.n))
        self.H += x.T @ x
        return self


def hessian(x: np.ndarray) -> np.ndarray:
    """H = 2/n sum x x^T of inputs `x` [tokens, k]: [k, k], float64 for float64 inputs, otherwise float32.

    For more inputs than fit in memory, call `Hessian(k).add(batch)` for each batch and read its `H`.
    """
    x = np.asarray(x)
    return Hessian(x.shape[-1] if x.ndim else 0, np.float64 if x.dtype == np.float64 else np.float32).add(x).H


@dataclass(frozen=True)
class Result:
    """What GPTQ and OBQ return.

    `losses` float64 [k]: each column's share of the layer's output error, summed over the rows, in the units of
    0.5 W H W^T: squared output per token. `damp`: the damping used in the end. `dead`: the columns no input reached.
    """

    quantized: Quantized
    losses: np.ndarray
    damp: float
    dead: np.ndarray


def quantize(
    w: np.ndarray,
    H: np.ndarray,
    grid,
    block_size: int = 128,
    damp: float = 0.01,
    act_order: bool = False,
    static_groups: bool = False,
    group_params: str = "fresh",
    backend: str = "numpy",
) -> Result:
    """Quantize a layer's weights so that its output on the calibration inputs changes least.

    Parameters
    ----------
    w : float [n, k]
        The weights, outputs by inputs. Not changed.
    H : float [k, k]
        The Hessian of the layer's inputs, from `hessian`.
    grid : str or grid
        Such as "int4-g128". Any object with name, group_index, fit, encode, decode and fields, as `grids.IntGrid`.
    block_size : int
        Columns whose updates of the columns after the block are applied in one product (the paper's B). It changes
        the speed and, with fresh group parameters, nothing else but float32 rounding.
    damp : float
        Added to the diagonal of H, as a fraction of its mean. While the Cholesky factorization fails it is raised
        tenfold (to 1e-4 at least), up to 1; `Result.damp` reports it.
    act_order : bool
        Take the columns in the order of falling H_jj. Their groups follow that order (the file then needs `g_idx`).
    static_groups : bool
        Fit every group before the loop, on neighbouring columns: with act_order, no `g_idx` is needed.
    group_params : "fresh" or "reference"
        What a group's scale and zero-point are fitted to when the loop reaches it: "fresh", its weights with all
        updates so far; "reference", as the published code, its weights without the updates of the current block.
        The two differ only where a group starts inside a block.
    backend : str
        "numpy" is the definition; "numba" and "cuda" where they exist.

    Raises
    ------
    BadInput, UnknownName, BackendUnavailable
    NotPositiveDefinite
        H cannot be factored even with its whole mean diagonal added.

    Notes
    -----
    The factorization runs in float64 (U is then rounded to float32), the column loop in float32. The published code
    does both in float32. Given its factor, this loop gives its codes, every one, on three layers of SmolLM2-135M;
    given the float64 factor, 1 to 15 rows of 576 meet a near-tie that falls the other way and differ from there on.

    Against other code: the published code has only group_params="reference", fits a whole-row grid before it zeroes the
    dead columns, keeps scales in float32 (use IntGrid(scale_dtype="float32")) and raises when the Cholesky fails.
    GPTQModel is the same with damp 0.05, raised by steps of 0.01. llm-compressor has static groups, and falls back to
    RTN when the Cholesky fails. Ties in the order of columns are broken by position here, arbitrarily there.
    Leaves out: the search for a clipped range (`mse`), GPTQModel's act_group_aware order, true-sequential calibration
    (that is `models.quantize`'s part).
    """
    w = check_weights(w)
    grid = as_grid(grid, w)
    H = check_hessian(H, w.shape[1], damp)
    if not (isinstance(block_size, int | np.integer) and block_size > 0):
        raise BadInput(f"block_size must be a positive integer, got {block_size!r}")
    if group_params not in ("fresh", "reference"):
        raise BadInput(f"group_params must be 'fresh' or 'reference', got {group_params!r}")
    run = ops.find_op("gptq", find_format(grid.name).family)
    return run(w, H, grid, block_size, damp, act_order, static_groups, group_params, backend=backend)


def _quantize(w, H, grid, block_size, damp, act_order, static_groups, group_params) -> Result:
    W, H, dead = without_dead(w, H)
    n, k = W.shape
    group = grid.group_index(k)  # [k], of the columns in the loop's order
    bounds = np.append(np.flatnonzero(np.diff(group, prepend=-1)), k)  # first column of each group, and the end
    fitted = [None] * (len(bounds) - 1)  # each group's (scale [n], zero [n])
    if static_groups:
        fitted = [grid.fit(W[:, start:end]) for start, end in pairwise(bounds)]

    order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(k)
    W, H = W[:, order], H[order][:, order]
    if static_groups:
        group = group[order]
    U, damp = inverse_factor(H, damp)
    U = U.astype(np.float32)

    codes = np.empty((n, k), np.uint8)
    losses = np.empty(k)
    for i1 in range(0, k, block_size):
        i2 = min(i1 + block_size, k)
        W1 = W[:, i1:i2].copy()  # updated at once; W itself only when the block is done
        Err1 = np.zeros_like(W1)
        for j in range(i1, i2):
            i = j - i1
            if fitted[group[j]] is None:
                end = bounds[group[j] + 1]
                Wg = W[:, j:end]  # [n, g]
                if group_params == "fresh":
                    Wg = Wg - Err1[:, :i] @ U[i1:j, j:end]
                fitted[group[j]] = grid.fit(Wg)

            w = W1[:, i]
            codes[:, j] = grid.encode(w, *fitted[group[j]])
            q = grid.decode(codes[:, j], *fitted[group[j]])
            Err1[:, i] = (w - q) / U[j, j]
            W1[:, i:] -= np.outer(Err1[:, i], U[j, j:i2])
        losses[i1:i2] = 0.5 * np.square(Err1, dtype=np.float64).sum(axis=0)
        W[:, i2:] -= Err1 @ U[i1:i2, i2:]

    back = np.argsort(order)  # where each column of the layer went
    params = (np.stack(each, axis=1) for each in zip(*fitted, strict=True))  # scales [n, G], zeros [n, G]
    fields = grid.fields(codes[:, back], *params, g_idx=group[back])
    return Result(ops.pack(fields, grid.name, (n, k)), losses[back], damp, dead)


def check_hessian(H: np.ndarray, k: int, damp: float) -> np.ndarray:
    """Return H as an array; raise `BadInput` for another shape than [k, k], NaN, infinity, or a damping not in 0..1."""
    H = np.asarray(H)
    if H.shape != (k, k) or H.dtype.kind != "f" or not np.isfinite(H).all():
        raise BadInput(f"H: expected finite floating point [{k}, {k}], got {H.dtype} {list(H.shape)}")
    if not 0 <= damp <= 1:
        raise BadInput(f"damp must lie in 0..1 (a fraction of the mean diagonal of H), got {damp!r}")
    return H


def without_dead(w: np.ndarray, H: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies of w and H (float64) where columns that no input reached have H_dd = 1 and weight 0; and those columns."""
    W, H = w.copy(), H.astype(np.float64)
    dead = np.flatnonzero(np.diag(H) == 0)
    H[dead, dead] = 1
    W[:, dead] = 0
    return W, H, dead


def inverse_factor(H: np.ndarray, damp: float) -> tuple[np.ndarray, float]:
    """U, float64 upper, with U^T U = (H + damp mean(diag H) I)^-1; and `damp`, raised until that could be factored."""
    mean = np.diag(H).mean()
    while True:
        try:
            Linv = np.linalg.inv(np.linalg.cholesky(H + damp * mean * np.eye(len(H))))
            return np.linalg.cholesky(Linv.T @ Linv, upper=True), damp
        except np.linalg.LinAlgError:
            if damp >= 1:
                raise NotPositiveDefinite(
                    f"H [{len(H)}, {len(H)}] is not positive definite even with damping {damp}; its diagonal spans "
                    f"{np.diag(H).min():.3g} to {np.diag(H).max():.3g}: was it made by `hessian`?"
                ) from None
            damp = min(max(10 * damp, 1e-4), 1.0)


def _traffic(shape, name):
    """Read w and H and write the arrays; n k^2 for the updates, 4/3 k^3 for factor, inverse and factor."""
    n, k = shape
    return ops.Traffic(4 * n * k + 4 * k * k, find_format(name).nbytes(shape), n * k * k + 4 * k**3 // 3)


ops.register("gptq", _quantize, _traffic)

register_method(
    Method(
        "gptq",
        layer=lambda w, grid, inputs, **options: quantize(w, inputs.hessian.H, grid, **options).quantized,
        needs=frozenset({"hessian"}),
        accelerated=True,
        # The order helps, and with static groups it costs nothing in the file: no g_idx.
        rows=gpu_rows(
            "gptq",
            "GPTQ",
            {"int4-g128": "GPU serving at scale", "int3-g128": "Max compression (GPU)"},
            act_order=True,
            static_groups=True,
        ),
    )
)
