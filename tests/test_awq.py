"""AWQ against plain loops over the definition, constructed layers with a known answer, and hostile inputs."""

import numpy as np
import pytest

from refquant import ops
from refquant.errors import BadInput, UnknownName
from refquant.grids import IntGrid, as_grid
from refquant.methods import awq, rtn


def make_layer(n=32, k=96, tokens=200, seed=0, outliers=()):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, k)).astype(np.float32)
    x[:, list(outliers)] *= 40
    w = rng.normal(size=(n, k)).astype(np.float32)
    return w, x


def output_error(weights, w, x):
    """Mean squared output change, in float64."""
    return np.square(x.astype(np.float64) @ (weights.astype(np.float64) - w).T).mean()


def nearest(w, grid):
    """RTN of float64 weights, one at a time: the level of its group that is nearest."""
    grid = as_grid(grid)
    out = np.empty(w.shape)
    for start in grid.starts(w.shape[1]):
        part = slice(start, start + (grid.group_size or w.shape[1]))
        scale, zero = grid.fit(w[:, part].astype(np.float32))
        levels = (np.arange(2**grid.bits) - zero[:, None].astype(np.float64)) * scale[:, None]  # [n, levels]
        at = np.abs(w[:, part, None] - levels[:, None]).argmin(axis=2)
        out[:, part] = np.take_along_axis(levels, at, axis=1)
    return out


# ---- the search


def test_errors_and_scales_follow_the_definition():
    w, x = make_layer(outliers=[5])
    r = awq.search([w], x, "int3-g32")
    assert r.alphas.tolist() == [i / 20 for i in range(20)]
    mean = np.abs(x.astype(np.float64)).mean(axis=0)
    for alpha, error in zip(r.alphas[::4], r.errors[::4], strict=True):
        s = np.maximum(mean**alpha, 1e-4)
        s /= np.sqrt(s.max() * s.min())
        np.testing.assert_allclose(error, output_error(nearest(w * s, "int3-g32") / s, w, x), rtol=2e-3)
        if alpha == r.alpha:
            np.testing.assert_allclose(r.scales, s, rtol=1e-6)
    assert r.alpha == r.alphas[r.errors.argmin()]


def test_alpha_zero_is_rtn():
    w, x = make_layer(outliers=[1])
    r = awq.search([w], x, "int4-g32", n_grid=1)
    assert r.alpha == 0
    np.testing.assert_array_equal(r.scales, 1)
    np.testing.assert_allclose(r.errors[0], output_error(nearest(w, "int4-g32"), w, x), rtol=1e-4)
    q = awq.quantize(w, x, "int4-g32", n_grid=1, with_clip=False).quantized
    np.testing.assert_array_equal(ops.dequantize(q), ops.dequantize(rtn.quantize(w, "int4-g32")))


def test_one_is_tried_only_on_request():
    w, x = make_layer(k=8)
    assert awq.search([w], x, "int4-row").alphas.max() == 0.95
    with_one = awq.search([w], x, "int4-row", include_one=True)
    assert with_one.alphas[-1] == 1
    assert len(with_one.alphas) == len(with_one.errors) == 21


def test_equal_channels_need_no_scale():
    """With activations of one size everywhere s is 1 at every alpha: all errors are equal, and the first is kept."""
    w, _ = make_layer(k=16)
    x = np.where(np.random.default_rng(0).random((50, 16)) < 0.5, -1, 1).astype(np.float32)
    r = awq.search([w], x, "int4-row")
    assert r.alpha == 0
    assert (r.errors == r.errors[0]).all()


def test_the_search_finds_the_exponent_at_which_the_weights_are_on_the_grid():
    """W s lies exactly on the grid at alpha = 0.5 and nowhere else: the channels are 1, 4, 16, 64 and s 1, 2, 4, 8."""
    grid = IntGrid(4, None, True, "float32")
    rng = np.random.default_rng(1)
    levels = rng.integers(-7, 8, (24, 16)).astype(np.float32)
    levels[:, 0], levels[:, 1] = 7.5, -7.5  # scale 1
    size = 4.0 ** rng.integers(0, 4, 16)
    size[[2, 3]] = 1, 64
    size[[0, 1]] = 1
    levels[:, :2] = 7.5, -7.5
    x = (np.where(rng.random((60, 16)) < 0.5, -1, 1) * size).astype(np.float32)
    s = np.sqrt(size) / np.sqrt(np.sqrt(64) * 1)
    x[:, :2] = 0  # the two that fix the scale round by half a step, at no cost
    size[[0, 1]] = 0
    s = np.maximum(size**0.5, 1e-4)
    s = s / np.sqrt(s.max() * s.min())
    r = awq.search([(levels / s).astype(np.float32)], x, grid)
    assert r.alpha == 0.5
    assert r.errors[10] < 1e-6 * np.delete(r.errors, 10).min()


def test_layers_that_share_an_input_share_the_scale_and_the_loss():
    w, x = make_layer(n=48, outliers=[3, 70])
    parts = [w[:8], w[8:40], w[40:]]
    together, apart = awq.search([w], x, "int3-g32"), awq.search(parts, x, "int3-g32")
    np.testing.assert_array_equal(together.scales, apart.scales)
    np.testing.assert_allclose(together.errors, apart.errors, rtol=1e-6)


def test_forward_scores_the_output_that_it_returns():
    w, x = make_layer(n=20, outliers=[3])
    seen = []

    def only_the_last_four_rows(ws):
        seen.append(ws[0])
        return x @ ws[0][-4:].T

    r = awq.search([w], x, "int3-g32", forward=only_the_last_four_rows)
    assert len(seen) == 21
    np.testing.assert_array_equal(seen[0], w)
    np.testing.assert_allclose(r.errors, awq.search([w[-4:]], x, "int3-g32").errors, rtol=1e-6)


def test_an_exponent_whose_output_is_not_finite_is_passed_over():
    w, x = make_layer(outliers=[3])
    best = awq.search([w], x, "int3-g32").alpha
    calls = iter(range(-1, 20))  # the original weights come first
    r = awq.search([w], x, "int3-g32", forward=lambda ws: x @ ws[0].T * (np.nan if next(calls) == 20 * best else 1))
    assert r.errors[round(20 * best)] == np.inf
    assert r.alpha == r.alphas[r.errors.argmin()] != best


def test_mean_abs_takes_the_place_of_the_mean_over_x():
    w, x = make_layer(outliers=[3])
    mean = np.abs(x).mean(axis=0, dtype=np.float64)
    np.testing.assert_array_equal(
        awq.search([w], x[:50], "int4-g32", mean_abs=mean, forward=lambda ws: x @ ws[0].T).scales,
        awq.search([w], x, "int4-g32").scales,
    )


def test_duo_scaling_divides_by_the_relative_magnitude_of_the_weights():
    w, x = make_layer(n=6, k=40)
    w[:, 7] = 0
    mean = np.abs(x.astype(np.float64)).mean(axis=0)
    relative = np.zeros(40)
    for j in range(40):
        group = slice(j // 32 * 32, j // 32 * 32 + 32)
        relative[j] = np.mean([abs(row[j]) / (np.abs(row[group]).max() + 1e-6) for row in w.astype(np.float64)])
    r = awq.search([w], x, "int4-g32", duo_scaling=True)
    s = np.maximum(mean**r.alpha / (relative ** (1 - r.alpha) + 1e-4), 1e-4)
    np.testing.assert_allclose(r.scales, s / np.sqrt(s.max() * s.min()), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["int4-g32", "int3-g32", "int3-row-sym"])
def test_outlier_channels_gain_and_the_search_never_loses(seed, name):
    w, x = make_layer(seed=seed, outliers=[5, 50])
    plain = output_error(rtn.rounded(w, name), w, x)
    r = awq.quantize(w, x, name, with_clip=False)
    error = output_error(ops.dequantize(r.quantized) / r.scales, w, x)
    assert error < 0.7 * plain
    np.testing.assert_allclose(error, r.errors.min(), rtol=1e-3)
    flat = make_layer(seed=seed)
    assert awq.search([flat[0]], flat[1], name).errors.min() <= output_error(rtn.rounded(flat[0], name), *flat) * 1.0001


def test_scaling_alone_preserves_the_function():
    w, x = make_layer(outliers=[5])
    s = awq.search([w], x, "int4-g32").scales.astype(np.float64)
    assert s.max() / s.min() > 2
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    np.testing.assert_allclose((x / s) @ (w * s).T, exact, rtol=0, atol=1e-12 * np.abs(exact).max())


# ---- hostile inputs


HOSTILE = {
    "zero channel": lambda w, x: x.__setitem__((slice(None), 4), 0),
    "zero channel in both": lambda w, x: (x.__setitem__((slice(None), 4), 0), w.__setitem__((slice(None), 4), 0)),
    "zero group": lambda w, x: w.__setitem__((slice(None), slice(32, 64)), 0),
    "zero weights": lambda w, x: w.__setitem__(slice(None), 0),
    "zero inputs": lambda w, x: x.__setitem__(slice(None), 0),
    "float16-subnormal channel": lambda w, x: x.__setitem__((slice(None), 4), 6e-8),
    "float32-subnormal channel": lambda w, x: x.__setitem__((slice(None), 4), 1e-42),
    "subnormal weights": lambda w, x: w.__setitem__((slice(None), 4), 1e-42),
    "huge channel": lambda w, x: x.__setitem__((slice(None), 4), 6e4),
    "beyond float16": lambda w, x: x.__setitem__((slice(None), 4), 1e8),
    "constant group": lambda w, x: w.__setitem__((slice(None), slice(32, 64)), 0.125),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["int4-g32", "int3-g40-sym"])
@pytest.mark.parametrize("duo_scaling", [False, True])
def test_case_24_scales_limits_and_weights_stay_finite(kind, name, duo_scaling):
    w, x = make_layer(n=8, tokens=64)
    HOSTILE[kind](w, x)
    r = awq.quantize(w, x, name, duo_scaling=duo_scaling)
    for each in (r.scales, 1 / r.scales, r.clip[0], ops.dequantize(r.quantized) / r.scales):
        assert np.isfinite(each).all()
    assert (r.scales > 0).all()
    assert np.isfinite(r.errors[0])


def test_case_24_float16_inputs_do_not_overflow_or_underflow():
    """In float16 sqrt(max * min) overflows and the mean of small channels is 0: everything here is done wider."""
    w, x = make_layer(n=8, tokens=64)
    x[:, 0], x[:, 1] = 6e4, 6e-8
    x, w = x.astype(np.float16), w.astype(np.float16)
    r = awq.search([w], x, "int4-g32", include_one=True)
    np.testing.assert_array_equal(r.scales, awq.search([w.astype(np.float32)], x.astype(np.float32), "int4-g32").scales)
    for alpha in r.alphas:
        s = awq.channel_scales(alpha, np.abs(x).mean(axis=0, dtype=np.float64))
        assert np.isfinite(s).all()
        np.testing.assert_allclose(s.max().astype(np.float64) * s.min(), 1, rtol=1e-5)


# ---- clipping


def clip_by_definition(w, x, name):
    """Every limit tried for every group of every row, in float64."""
    grid = as_grid(name)
    starts = grid.starts(w.shape[1])
    limits = np.empty((len(w), len(starts)))
    errors = np.empty((len(w), len(starts), 10))
    for g, start in enumerate(starts):
        part = slice(start, start + grid.group_size)
        for row in range(len(w)):
            top = np.abs(w[row, part]).max()
            for i in range(10):
                cut = np.clip(w[row : row + 1, part], -top * np.float32(1 - i / 20), top * np.float32(1 - i / 20))
                change = nearest(cut, IntGrid(grid.bits, None, grid.sym)) - w[row : row + 1, part]
                errors[row, g, i] = np.square(x[:, part].astype(np.float64) @ change[0]).mean()
            limits[row, g] = top * (1 - errors[row, g].argmin() / 20)
    return limits, errors


@pytest.mark.parametrize("name", ["int3-g16", "int2-g20-sym"])
def test_clip_finds_the_best_limit_of_each_group(name):
    w, x = make_layer(n=6, k=48, tokens=100, seed=2)
    limits, errors = clip_by_definition(w, x, name)
    assert len(set(errors.argmin(axis=2).ravel())) > 2, "the case shows nothing: all groups want the same limit"
    np.testing.assert_allclose(awq.clip(w, x, name), limits, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["int4-g32", "int3-g32", "int2-g32-sym", "int3-g40", "int3-row"])
def test_clip_never_increases_a_groups_output_error(seed, name):
    w, x = make_layer(seed=seed, outliers=[5])
    grid = as_grid(name)
    clipped = rtn.rounded(awq.clamp(w, awq.clip(w, x, grid), grid), grid)
    plain = rtn.rounded(w, grid)
    for g in range(len(grid.starts(96))):
        part = grid.group_index(96) == g
        before, after = (
            np.square(x[:, part].astype(np.float64) @ (each - w)[:, part].T).mean(axis=0) for each in (plain, clipped)
        )
        assert (after <= before * (1 + 1e-5)).all()
        assert name == "int4-g32" or (after < before).any()


def test_clip_looks_at_tokens_from_the_whole_calibration():
    w, x = make_layer(n=4, k=32, tokens=1000, seed=3)
    np.testing.assert_array_equal(awq.clip(w, x, "int3-g16", tokens=100), awq.clip(w, x[::10], "int3-g16", tokens=100))
    np.testing.assert_array_equal(awq.clip(w, x[:7], "int3-g16"), awq.clip(w, x[:7], "int3-g16", tokens=7))


def test_clamp_cuts_each_group_at_its_own_limit():
    w = np.array([[-4, 3, 2, -1, 5]], np.float32)
    limits = np.array([[2, 1.5, 10]], np.float32)
    assert awq.clamp(w, limits, "int4-g2").tolist() == [[-2, 2, 1.5, -1, 5]]


def test_search_clips_the_scaled_weights():
    w, x = make_layer(outliers=[5])
    r = awq.search([w, w[:4]], x, "int3-g32", with_clip=True)
    assert [limits.shape for limits in r.clip] == [(32, 3), (4, 3)]
    np.testing.assert_array_equal(r.clip[1], awq.clip(w[:4] * r.scales, x / r.scales, "int3-g32"))


def test_quantize_rounds_the_scaled_and_clipped_weights():
    w, x = make_layer(outliers=[5])
    r = awq.quantize(w, x, "int3-g32")
    np.testing.assert_array_equal(
        ops.dequantize(r.quantized), rtn.rounded(awq.clamp(w * r.scales, r.clip[0], "int3-g32"), "int3-g32")
    )
    y = ops.matmul(x / r.scales, r.quantized)
    exact = x.astype(np.float64) @ w.T
    assert np.square(y - exact).mean() < output_error(rtn.rounded(w, "int3-g32"), w, x)


# ---- the alternative: some channels in float16


def test_salient_channels_are_those_with_large_activations():
    _, x = make_layer(k=200, outliers=[17, 140])
    assert awq.salient(x).tolist() == [17, 140]
    assert awq.salient(x, 0).tolist() == []
    assert awq.salient(x[:, :30], 0.001).tolist() == [17], "at least one"
    assert len(awq.salient(x, 0.1)) == 20


def test_keep_salient_helps_where_channels_stand_out_and_costs_what_it_says():
    w, x = make_layer(n=64, k=200, outliers=[17, 140])
    mixed = awq.keep_salient(w, x, "int3-g32", 0.01)
    assert mixed.columns.tolist() == [17, 140]
    np.testing.assert_array_equal(mixed.weights[:, [17, 140]], w[:, [17, 140]].astype(np.float16))
    assert output_error(mixed.weights, w, x) < 0.2 * output_error(rtn.rounded(w, "int3-g32"), w, x)
    # a row: 75 bytes of 198 codes, 14 and 3 of 7 scales and zeros, 4 of 2 float16 weights; 8 for the columns' numbers
    assert mixed.bits_per_weight == 8 * (64 * (75 + 14 + 3 + 4) + 8) / (64 * 200)


def test_keep_salient_of_nothing_is_rtn():
    w, x = make_layer()
    mixed = awq.keep_salient(w, x, "int4-g32", 0)
    np.testing.assert_array_equal(mixed.weights, rtn.rounded(w, "int4-g32"))
    assert mixed.bits_per_weight == rtn.quantize(w, "int4-g32").bits_per_weight


# ---- arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.empty((0, 16), np.float32)}, "at least one token"),
        ({"x": np.ones((3, 15), np.float32)}, r"\[tokens, 16\]"),
        ({"x": np.full((3, 16), np.inf, np.float32)}, "NaN or infinity"),
        ({"ws": [np.full((2, 16), np.nan, np.float32)]}, "NaN"),
        ({"ws": [np.ones((2, 16), np.float32), np.ones((2, 8), np.float32)]}, "same inputs"),
        ({"ws": []}, "same inputs"),
        ({"mean_abs": np.ones(15)}, "mean_abs"),
        ({"mean_abs": np.full(16, np.nan)}, "mean_abs"),
        ({"n_grid": 0}, "n_grid"),
        ({"forward": lambda ws: np.full(3, np.nan)}, "finite"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"ws": [np.ones((2, 16), np.float32)], "x": np.ones((3, 16), np.float32), "grid": "int4-g8"}
    with pytest.raises(BadInput, match=message):
        awq.search(**good | change)


def test_other_bad_arguments():
    w, x = make_layer(k=4)
    with pytest.raises(UnknownName, match="int4-g128"):
        awq.search([w], x, "awq4")
    with pytest.raises(BadInput, match="fraction"):
        awq.keep_salient(w, x, "int4-row", 1.0)
    with pytest.raises(BadInput, match="none left"):
        awq.keep_salient(w[:, :1], x[:, :1], "int4-row", 0.01)
    w[0, 0] = 1e6
    x[:, 0] = 1e3
    with pytest.raises(BadInput, match="float16"):
        awq.keep_salient(w, x, "int4-row", 0.25)
