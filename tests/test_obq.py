"""OBQ against a float64 search that inverts the Hessian of the free weights anew at every step."""

import numpy as np
import pytest

from refquant import ops
from refquant.errors import BadInput, NotPositiveDefinite, UnknownName
from refquant.grids import as_grid
from refquant.methods import gptq, obq, rtn


def make_layer(n=8, k=32, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, k)) @ rng.normal(size=(k, k)) / np.sqrt(k)
    w = rng.normal(size=(n, k)).astype(np.float32)
    return w, x, gptq.hessian(x)


def output_error(quantized, w, H):
    change = ops.dequantize(quantized).astype(np.float64) - w
    return 0.5 * np.trace(change @ H @ change.T)


def brute_force(w, H, grid, outliers_first):
    """Each step by its definition: the least 0.5 d H d^T over moves of the free weights that round one of them."""
    H = H + 0.01 * np.diag(H).mean() * np.eye(len(H))
    n, k = w.shape
    scales, zeros = grid.fit_groups(w)
    group = grid.group_index(k)
    found = np.empty((n, k), np.uint8)
    for row in range(n):
        now, free = w[row].astype(np.float64), list(range(k))
        while free:
            inverse = np.linalg.inv(H[np.ix_(free, free)])
            choices = []
            for at, p in enumerate(free):
                s, z = float(scales[row, group[p]]), float(zeros[row, group[p]])
                levels = (np.arange(2**grid.bits) - z) * s
                code = int(np.argmin(np.abs(levels - now[p])))
                gap = now[p] - levels[code]
                move = -gap / inverse[at, at] * inverse[at]  # [free], rounds p: move[at] == -gap
                worst_first = outliers_first and abs(gap) > s / 2
                cost = 0.5 * move @ H[np.ix_(free, free)] @ move
                choices.append((not worst_first, s / 2 - abs(gap) if worst_first else cost, p, code, move))
            _, _, p, code, move = min(choices, key=lambda choice: choice[:3])
            now[free] += move
            found[row, p] = code
            free.remove(p)
    return found


@pytest.mark.parametrize("name", ["int4-row", "int3-g12", "int2-g8-sym"])
@pytest.mark.parametrize("outliers_first", [False, True])
def test_obq_is_the_brute_force_search(name, outliers_first):
    w, _, H = make_layer(n=5, k=24, seed=1)
    r = obq.quantize(w, H, name, outliers_first=outliers_first)
    np.testing.assert_array_equal(
        ops.unpack(r.quantized)["codes"], brute_force(w, H, as_grid(name), outliers_first=outliers_first)
    )


@pytest.mark.parametrize("name", ["int4-row", "int3-row", "int2-row", "int3-g16"])
def test_obq_beats_gptq_with_the_same_groups_and_rtn_on_average(name):
    ratios = []
    for seed in range(6):
        w, _, H = make_layer(k=64, seed=seed)
        greedy, columns = obq.quantize(w, H, name), gptq.quantize(w, H, name, static_groups=True)
        nearest = output_error(rtn.quantize(w, name), w, H)
        ratios.append([output_error(r.quantized, w, H) / nearest for r in (greedy, columns)])
    greedy, columns = np.mean(ratios, axis=0)
    assert greedy < 0.97 * columns
    assert columns < 0.7


def test_rounding_outliers_first_helps_where_weights_leave_their_grid():
    last, first = (
        sum(
            output_error(obq.quantize(w, H, "int2-row", outliers_first=way).quantized, w, H)
            for w, _, H in (make_layer(seed=seed) for seed in range(4))
        )
        for way in (False, True)
    )
    assert first < last


def test_losses_are_the_output_error_of_the_damped_hessian():
    w, _, H = make_layer(seed=2)
    r = obq.quantize(w, H, "int3-g16")
    damped = H + r.damp * np.diag(H).mean() * np.eye(32)
    np.testing.assert_allclose(r.losses.sum(), output_error(r.quantized, w, damped), rtol=1e-5)


def test_uncorrelated_inputs_leave_nothing_to_gain_over_rtn():
    w, _, _ = make_layer(seed=3)
    r = obq.quantize(w, np.diag(np.linspace(0.1, 3, 32)), "int4-g16")
    np.testing.assert_array_equal(ops.unpack(r.quantized)["codes"], ops.unpack(rtn.quantize(w, "int4-g16"))["codes"])


@pytest.mark.parametrize("name", ["int4-g16", "int3-g16-sym"])
def test_case_18_19_20_dead_columns_few_tokens_zero_and_constant_groups(name):
    w, x, _ = make_layer(seed=4)
    x = x[:6]
    x[:, 3] = 0
    w[:, 16:], w[2], w[5] = 0.5, 0, -0.25
    r = obq.quantize(w, gptq.hessian(x), name)
    decoded = ops.dequantize(r.quantized)
    assert r.dead.tolist() == [3]
    assert np.isfinite(decoded).all()
    assert np.isfinite(r.losses).all()
    assert not decoded[:, 3].any()
    assert not decoded[2].any()


def test_bad_arguments_are_named():
    w, _, H = make_layer()
    with pytest.raises(BadInput, match=r"\[32, 32\]"):
        obq.quantize(w, H[:-1], "int4-row")
    with pytest.raises(BadInput, match="damp"):
        obq.quantize(w, H, "int4-row", damp=2)
    with pytest.raises(UnknownName, match="int4-g128"):
        obq.quantize(w, H, "q4")
    H[0, 1] = H[1, 0] = 1e6
    with pytest.raises(NotPositiveDefinite):
        obq.quantize(w, H, "int4-row")
