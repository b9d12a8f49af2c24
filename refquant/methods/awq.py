"""AWQ: scale the input channels that carry large activations up before rounding, and their activations down.

A layer computes x W^T = (x / s) (W s)^T for any positive s [k], one factor to an input channel. A channel with s_j > 1
is rounded on a grid that is finer in the units of W; as long as its weights do not set the maximum of their groups, the
others lose nothing. s comes from the activations with one free number, searched on a grid::

    s(alpha) = r / sqrt(max r * min r),  r = max((mean |x|)^alpha, 1e-4)         alpha = 0, 0.05, ... 0.95
    alpha    = the one whose rounded layer W' = round(W s) / s changes the output least

Then each group's range may be clipped where that lowers the error of its output further (`clip`). In a model, 1 / s is
absorbed by the operation before the layer (`models`), so that nothing is left to compute at run time.

Source: Lin et al., "AWQ" (arXiv 2306.00978), section 3; llm-awq (mit-han-lab, commit d6e797a), auto_scale.py and
auto_clip.py, whose behaviour this follows.
"""

from dataclasses import dataclass, replace

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.grids import as_grid, check_inputs, check_weights
from refquant.methods import rtn
from refquant.methods.registry import Method, gpu_rows, register_method
from refquant.quantized import Quantized, find_format


@dataclass(frozen=True)
class Result:
    """What the search found.

    `scales` float32 [k]: s, by which the weights are multiplied. `alpha`: the exponent that gave it. `errors` float64:
    the mean squared output error at each of `alphas`. `clip`: for each weight matrix the limits [n, G] of `clip`, where
    asked for. `quantized`: the matrix W s, from `quantize` only; the layer is (x / scales) times it.
    """

    scales: np.ndarray
    alpha: float
    alphas: np.ndarray
    errors: np.ndarray
    clip: list[np.ndarray] | None = None
    quantized: Quantized | None = None


def search(
    ws,
    x: np.ndarray,
    grid,
    forward=None,
    mean_abs: np.ndarray | None = None,
    n_grid: int = 20,
    include_one: bool = False,
    duo_scaling: bool = False,
    with_clip: bool = False,
    backend: str = "numpy",
) -> Result:
    """Search the scale of the input channels that several layers share (q, k and v; gate and up; or one alone).

    Parameters
    ----------
    ws : list of float [n_i, k]
        The weights of the layers that read the same input.
    x : float [m, k]
        That input on the calibration data.
    grid : str or grid
        Such as "int4-g128".
    forward : callable, optional
        Takes the list of weights (scaled, rounded and scaled back) to the output that is to change least, an array: the
        whole attention or MLP with these weights in place. By default, the outputs x w^T of the layers themselves.
    mean_abs : float [k], optional
        Mean |x| over more tokens than `x` holds; by default, over `x`.
    n_grid : int
        Exponents tried: 0, 1/n_grid, ... (n_grid - 1)/n_grid.
    include_one : bool
        Try 1 as well, which llm-awq and AutoAWQ never do.
    duo_scaling : bool
        Divide by (mean of |w| over its group's maximum)^(1 - alpha) too, as AutoAWQ by default. alpha = 0 is then no
        longer plain RTN.
    with_clip : bool
        Also search the clipping of each matrix of W s (`Result.clip`), in NumPy. Not for q and k: their outputs are
        multiplied with each other, so the error of either alone says little.
    backend : str
        Who computes the errors of the exponents: "numpy" is the definition; "numba"; "cuda", without `forward`.

    Raises
    ------
    BadInput
        No tokens, NaN or infinity, matrices of different widths, no exponent with a finite error.
    UnknownName
        No such grid.
    BackendUnavailable
        No such backend, or none for this grid.

    Notes
    -----
    At alpha = 0, s is 1 and the result plain RTN. Of equal errors the smallest alpha is kept.
    An alpha whose group scales float16 cannot hold counts as an infinite error.

    Against other code: llm-awq rounds on a range that is not widened to contain 0, with a scale of at least 1e-5.
    AutoAWQ replaces scales that are not finite by 1; here they cannot arise: the mean is in float64, and max and min
    are never multiplied.
    Leaves out: absorbing 1 / s into the model (`models`).
    """
    grid = as_grid(grid)
    ws = [check_weights(w) for w in ws]
    if len({w.shape[1] for w in ws}) != 1:
        raise BadInput(f"awq.search: expected matrices with the same inputs, got {[w.shape for w in ws]}")
    if n_grid < 1:
        raise BadInput(f"n_grid must be at least 1, got {n_grid!r}")
    x = check_inputs(x, ws[0].shape[1])
    x_mean = np.abs(x).mean(axis=0, dtype=np.float64) if mean_abs is None else np.asarray(mean_abs, np.float64)
    if x_mean.shape != x.shape[1:] or not (np.isfinite(x_mean) & (x_mean >= 0)).all():
        raise BadInput(f"mean_abs: expected {x.shape[1]} finite values of at least 0, got shape {x_mean.shape}")
    w_mean = _relative_magnitude(ws, grid) if duo_scaling else None
    alphas = np.arange(n_grid + include_one) / n_grid
    candidates = [channel_scales(alpha, x_mean, w_mean) for alpha in alphas]

    errors = ops.find_op("awq", find_format(grid.name).family)(ws, x, grid, candidates, forward, backend=backend)
    errors[np.isnan(errors)] = np.inf
    best = int(np.argmin(errors))
    if not np.isfinite(errors[best]):
        raise BadInput("awq.search: no exponent gave a finite output error; the layer's output is not finite")

    s = candidates[best]
    limits = [clip(w * s, x / s, grid) for w in ws] if with_clip else None
    return Result(s, float(alphas[best]), alphas, errors, limits)


def candidate(w: np.ndarray, s: np.ndarray, grid) -> np.ndarray:
    """W' = round(W s) / s: the layer, float32 [n, k], that the scales s [k] would leave."""
    return rtn.rounded(w * s, grid) / s


def output_errors(ws, x, grid, candidates, forward=None, candidate=candidate) -> np.ndarray:
    """Mean squared change of the output for each of the candidate scales, float64; infinite beyond float16."""
    forward = forward or (lambda ws: np.concatenate([x @ w.T for w in ws], axis=1))
    before = np.asarray(forward(ws), np.float64)
    errors = np.full(len(candidates), np.inf)
    for i, s in enumerate(candidates):
        try:
            after = forward([candidate(w, s, grid) for w in ws])
        except BadInput:  # a group's scale beyond float16
            continue
        errors[i] = np.square(np.asarray(after, np.float64) - before).mean()
    return errors


def _traffic(shape, name, m=1, candidates=20):
    """Read w and x; m n k multiplications and additions for each candidate and for the layer as it is."""
    n, k = shape
    return ops.Traffic(4 * n * k + 4 * m * k, 8 * candidates, 2 * m * n * k * (candidates + 1))


ops.register("awq", output_errors, _traffic)


def channel_scales(alpha: float, x_mean: np.ndarray, w_mean: np.ndarray | None = None) -> np.ndarray:
    """s(alpha), float32 [k], positive and finite, the geometric mean of its extremes 1."""
    s = x_mean**alpha  # 0^0 is 1
    if w_mean is not None:
        s = s / (w_mean ** (1 - alpha) + 1e-4)
    s = np.maximum(s, 1e-4)
    return (s / (np.sqrt(s.max()) * np.sqrt(s.min()))).astype(np.float32)


def _relative_magnitude(ws, grid) -> np.ndarray:
    """Mean over all rows of |w| / max |w| of its group, float64 [k]."""
    w = np.abs(np.concatenate(ws))  # [n, k]
    top = np.maximum.reduceat(w, grid.starts(w.shape[1]), axis=1)[:, grid.group_index(w.shape[1])]
    return (w / (top + 1e-6)).mean(axis=0, dtype=np.float64)


def clip(w: np.ndarray, x: np.ndarray, grid, n_grid=20, max_shrink=0.5, tokens=512, backend="numpy") -> np.ndarray:
    """Search, for each group of each row, the limit of |w| at which the group's share of the output changes least.

    Limits of max|w| (1 - i / n_grid), i = 0, 1, ... below `max_shrink` n_grid, are tried: ten by default. The error of
    a group is the mean of (x_g (w'_g - w_g))^2 over `tokens` tokens spread over `x` [m, k]; the first, no clipping, is
    kept unless another is better, so that no group gets worse on those tokens. The sum over the groups of a row may
    still get worse where the groups' errors correlate: each is judged alone.

    Returns
    -------
    limits : float32 [n, G]
        For `clamp`. `w` and `x` are those of the scaled layer: W s and x / s. The same on every `backend` ("numpy",
        "numba") but for near-ties of two errors.

    Notes
    -----
    Against other code: auto_clip_layer of llm-awq, for any group size and any number of rows and tokens.
    Leaves out: limits for the two ends of a range apart.
    """
    w = check_weights(w)
    grid = as_grid(grid, w)
    x = check_inputs(x, w.shape[1])
    x = x[:: max(1, len(x) // tokens)]
    shares = np.float32(1) - np.arange(int(max_shrink * n_grid), dtype=np.float32) / np.float32(n_grid)
    return ops.find_op("awq clip", find_format(grid.name).family)(w, x, grid, shares, backend=backend)


def _clip(w, x, grid, shares) -> np.ndarray:
    starts = grid.starts(w.shape[1])
    limits = np.empty((len(w), len(starts)), np.float32)
    for g, (start, end) in enumerate(zip(starts, [*starts[1:], w.shape[1]], strict=True)):
        wg = w[:, start:end]  # [n, g]
        R = np.linalg.qr(x[:, start:end], mode="r")  # [min(m, g), g]: for every d, |R d| = |x d|, with fewer rows
        top = np.abs(wg).max(axis=1)  # [n]
        limits[:, g], least = top, np.full(len(w), np.inf)
        for share in shares:
            limit = top * share
            cut = np.clip(wg, -limit[:, None], limit[:, None])
            scale, zero = (each[:, None] for each in grid.fit(cut))
            q = grid.decode(grid.encode(cut, scale, zero), scale, zero)
            error = np.square((q - wg) @ R.T).sum(axis=1)  # [n]
            better = error < least
            limits[better, g], least[better] = limit[better], error[better]
    return limits


ops.register("awq clip", _clip, _traffic)


def clamp(w: np.ndarray, limits: np.ndarray, grid) -> np.ndarray:
    """Weights cut to the limits [n, G] that `clip` found for them, float32 [n, k]."""
    limit = limits[:, as_grid(grid).group_index(w.shape[1])]  # [n, k]
    return np.clip(w, -limit, limit)


def quantize(w: np.ndarray, x: np.ndarray, grid, with_clip: bool = True, **options) -> Result:
    """Search, scale, clip and round one layer `w` [n, k] by itself; `options` as for `search`.

    `Result.quantized` holds W s: the layer's output is `ops.matmul(x / r.scales, r.quantized)`.
    """
    r = search([w], x, grid, with_clip=with_clip, **options)
    scaled = check_weights(w) * r.scales
    return replace(r, quantized=rtn.quantize(clamp(scaled, r.clip[0], grid) if with_clip else scaled, grid))


@dataclass(frozen=True)
class Mixed:
    """A layer with some columns in float16: `weights` float32 [n, k] decoded, `columns` those, `bits_per_weight`."""

    weights: np.ndarray
    columns: np.ndarray
    bits_per_weight: float


def salient(x: np.ndarray, fraction: float = 0.01) -> np.ndarray:
    """Return the input channels with the largest mean |x|, ascending: `fraction` of them, at least one if not 0."""
    if not 0 <= fraction < 1:
        raise BadInput(f"fraction must lie in 0..1, 1 excluded, got {fraction!r}")
    x = check_inputs(x, np.shape(x)[-1] if np.ndim(x) else 0)
    count = max(round(fraction * x.shape[1]), int(fraction > 0))
    return np.sort(np.argsort(-np.abs(x).mean(axis=0, dtype=np.float64), kind="stable")[:count])


def keep_salient(w: np.ndarray, x: np.ndarray, grid, fraction: float = 0.01) -> Mixed:
    """Keep the salient columns in float16 and round the rest: the alternative that AWQ was made to avoid.

    The other columns form a matrix of their own, whose groups close up over the gaps. Its arrays, two bytes for each
    weight kept and four for the number of each column kept make up `bits_per_weight`.

    Source: section 3.1 of the AWQ paper, Table 1, which selects by the activations, as here, and by other rules.
    """
    w, grid = check_weights(w), as_grid(grid)
    x = check_inputs(x, w.shape[1])
    columns = salient(x, fraction)
    rest = np.delete(np.arange(w.shape[1]), columns)
    if not len(rest):
        raise BadInput(f"a layer of {w.shape[1]} inputs has none left to quantize with {len(columns)} kept")
    with np.errstate(over="ignore"):
        kept = w[:, columns].astype(np.float16)
    if not np.isfinite(kept).all():
        raise BadInput(f"a salient weight of {np.abs(w[:, columns]).max():.3g} does not fit float16")
    q = rtn.quantize(w[:, rest], grid)
    weights = np.empty_like(w)
    weights[:, columns] = kept
    weights[:, rest] = ops.dequantize(q)
    return Mixed(weights, columns, 8 * (q.nbytes + kept.nbytes + 4 * len(columns)) / w.size)


# In a model, `refquant.models.absorb` searches, absorbs and clips; what is left for a layer is to round.
register_method(
    Method(
        "awq",
        layer=lambda w, grid, inputs: rtn.quantize(w, grid),
        needs=frozenset({"x", "mean_abs"}),
        accelerated=True,
        tokens=4096,  # one number a channel is learned, so few are enough
        rows=gpu_rows(
            "awq",
            "AWQ",
            {"int4-g128": "GPU serving at scale", "int3-g128": "Max compression (GPU)"},
            duo_scaling=True,  # as AutoAWQ by default
        ),
    )
)
