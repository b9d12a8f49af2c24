"""NF4, FP8, LLM.int8 and OBQ in Numba: the reference's arrays and codes; products as accurate as a float32 loop."""

import numba
import numpy as np
import pytest
from test_kernels_decode import assert_as_accurate_as_a_loop, assert_same_bits

import refquant as rq
from refquant import ops
from refquant.errors import BackendUnavailable, BadInput
from refquant.grids import IntGrid
from refquant.methods import awq, gptq, llm_int8, obq
from refquant.quantized import Quantized

NF4 = ["nf4", "nf4-dq", "nf4-b32", "nf4-b256-dq"]
FP8 = ["fp8-e4m3", "fp8-e4m3-tensor", "fp8-e4m3-block", "fp8-e5m2", "fp8-e4m3fnuz-block", "fp8-e5m2fnuz"]
SHAPES = [(1, 1), (1, 64), (7, 1), (5, 257), (130, 300), (3, 1024)]


def weights(shape, seed=90):
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, shape).astype(np.float32) * np.float32(0.02)
    w[rng.random(shape) < 0.1] = 0
    w[rng.random(shape) < 0.05] *= np.float32(1e-4)  # subnormal in FP8
    w[0, ::3] = -0.0
    return w


def assert_same_arrays(got, want):
    assert got.arrays.keys() == want.arrays.keys()
    for field, array in want.arrays.items():
        np.testing.assert_array_equal(got.arrays[field], array, strict=True, err_msg=field)


@pytest.mark.parametrize("name", [*NF4, *FP8, "llm-int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantized_and_decoded_as_the_reference_does(name, shape):
    w = weights(shape)
    for given in (w, w.T, np.asfortranarray(w), w[:, ::-1], np.zeros_like(w)):
        got, want = rq.quantize(given, name, backend="numba"), rq.quantize(given, name)
        assert_same_arrays(got, want)
        assert_same_bits(rq.dequantize(got, backend="numba"), rq.dequantize(want))


@pytest.mark.parametrize("name", ["nf4", *FP8])
def test_numbers_at_and_beside_the_middle_of_two_levels(name):
    """Every middle, and its two neighbours in float32, at scales that are powers of two, so that division is exact."""
    from refquant.grids import as_grid

    book = as_grid(name).codebook
    levels = np.sort(book.values[np.isfinite(book.values)])
    middles = np.unique(((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32))
    near = np.concatenate([middles, np.nextafter(middles, np.float32(9)), np.nextafter(middles, np.float32(-9))])
    for power in (1.0, 2.0**-20, 2.0**20):
        w = np.zeros((-(-len(near) // 31), 64), np.float32)
        w[:, 0] = book.max
        w[:, 1:32].flat[: len(near)] = near
        w *= np.float32(power)
        assert_same_arrays(rq.quantize(w, name, backend="numba"), rq.quantize(w, name))


@pytest.mark.parametrize("name", FP8)
def test_every_code_decodes(name):
    """NaN and infinity included."""
    q = rq.quantize(weights((4, 256)), name)
    q = Quantized(name, q.shape, q.arrays | {"weight": np.tile(np.arange(256, dtype=np.uint8), (4, 1))})
    assert_same_bits(rq.dequantize(q, backend="numba"), rq.dequantize(q))


def test_a_file_may_have_levels_of_its_own():
    q = rq.quantize(weights((4, 128)), "nf4")
    q = Quantized("nf4", q.shape, q.arrays | {"quant_map": q.arrays["quant_map"][::-1].copy()})
    assert_same_bits(rq.dequantize(q, backend="numba"), rq.dequantize(q))


@pytest.mark.parametrize("name", [*NF4, *FP8])
def test_matmul_is_as_accurate_as_a_float32_loop(name):
    rng = np.random.default_rng(91)
    for n, k in ((1, 1), (9, 100), (37, 512), (140, 768)):
        q = rq.quantize((rng.standard_normal((n, k)) * 0.02).astype(np.float32), name)
        w = rq.dequantize(q)
        for m in (0, 1, 3, 33):
            x = rng.standard_normal((m, k)).astype(np.float32)
            assert_as_accurate_as_a_loop(rq.matmul(x, q, backend="numba"), x, w)


@pytest.mark.parametrize("name", ["nf4", "fp8-e4m3", "llm-int8"])
def test_layouts_of_activations_and_threads(name):
    rng = np.random.default_rng(92)
    w = rng.standard_normal((2200, 512)).astype(np.float32)
    q = rq.quantize(w, name)
    x = rng.standard_normal((2, 512)).astype(np.float32)
    want, before = rq.matmul(x, q, backend="numba"), numba.get_num_threads()
    for given in (x.astype(np.float64), np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[None]):
        got = rq.matmul(given, q, backend="numba")
        np.testing.assert_array_equal(got.reshape(want.shape), want)
    assert rq.matmul(x[0], q, backend="numba").shape == (2200,)
    assert rq.matmul(x[:0], q, backend="numba").shape == rq.matmul(x[:0], q).shape == (0, 2200)
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            assert_same_arrays(rq.quantize(w, name, backend="numba"), q)
            np.testing.assert_array_equal(rq.matmul(x, q, backend="numba"), want)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("name", ["nf4", "fp8-e4m3"])
def test_nan_in_activations_and_weights_is_not_hidden(name):
    q = rq.quantize(weights((8, 512)), name)
    x = np.ones((2, 512), np.float32)
    x[1, 300] = np.nan
    y = rq.matmul(x, q, backend="numba")
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[0]).all()
    if name == "fp8-e4m3":
        q.arrays["weight"][3, 500] = 0xFF
        y = rq.matmul(x[:1], q, backend="numba")
        np.testing.assert_array_equal(np.isnan(y[0]), np.arange(8) == 3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 63), (5, 64), (9, 200), (40, 1024)])
@pytest.mark.parametrize("m", [1, 2, 17])
def test_llm_int8_product_equals_the_references(m, shape):
    """To the bit without outliers; with them, the columns set apart are summed by another call of BLAS."""
    rng = np.random.default_rng(93)
    q = rq.quantize(rng.standard_normal(shape).astype(np.float32), "llm-int8")
    x = np.clip(rng.standard_normal((m, shape[1])), -5, 5).astype(np.float32)
    np.testing.assert_array_equal(rq.matmul(x, q, backend="numba"), rq.matmul(x, q))
    x[:, shape[1] // 2] = 30
    np.testing.assert_allclose(rq.matmul(x, q, backend="numba"), rq.matmul(x, q), rtol=1e-5, atol=1e-5)
    q = llm_int8.with_threshold(q, 0)
    np.testing.assert_array_equal(rq.matmul(x, q, backend="numba"), rq.matmul(x, q))


def test_llm_int8_integers_at_the_ends():
    from refquant_kernels.cpu.llm_int8 import int32_product

    a, b = np.full((6, 4097), -127, np.int8), np.full((3, 4097), -128, np.int8)  # four tokens at a time, two rows
    a[1], a[5], b[1] = 127, 127, 127
    np.testing.assert_array_equal(int32_product(a, b), a.astype(np.int64) @ b.astype(np.int64).T)


def test_llm_int8_refuses_what_float16_cannot_hold():
    with pytest.raises(BadInput, match="65504"):
        rq.quantize(np.full((2, 8), 1e6, np.float32), "llm-int8", backend="numba")


# ---- OBQ


def layer(n, k, seed=94):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * k, k)) @ (np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k))
    x[:, k // 3] = 0
    return (rng.standard_normal((n, k)) * 0.02).astype(np.float32), gptq.hessian(x)


@pytest.mark.parametrize("grid", ["int4-g32", "int3-row", "int2-g16-sym"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("n", "k"), [(1, 2), (3, 48), (8, 65)])
def test_obq_has_the_references_codes(n, k, first, grid):
    w, H = layer(n, k)
    before = w.copy(), H.copy()
    got, want = (obq.quantize(w, H, grid, outliers_first=first, backend=b) for b in ("numba", "numpy"))
    assert_same_arrays(got.quantized, want.quantized)
    np.testing.assert_allclose(got.losses, want.losses, rtol=1e-12)
    np.testing.assert_array_equal(got.dead, want.dead)
    assert got.damp == want.damp
    np.testing.assert_array_equal(w, before[0])
    np.testing.assert_array_equal(H, before[1])


def test_obq_of_one_column_and_on_every_number_of_threads():
    w, H = layer(40, 24)
    one = obq.quantize(w[:, :1], np.ones((1, 1)), "int4-row", backend="numba")
    assert_same_arrays(one.quantized, obq.quantize(w[:, :1], np.ones((1, 1)), "int4-row").quantized)
    want, before = obq.quantize(w, H, "int4-g8").quantized, numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            assert_same_arrays(obq.quantize(w, H, "int4-g8", backend="numba").quantized, want)
    finally:
        numba.set_num_threads(before)


def test_obq_on_other_grids_says_what_it_has():
    w, H = layer(2, 64)
    with pytest.raises(BackendUnavailable, match="numpy"):
        obq.quantize(w, H, "nf4", backend="numba")


# ---- a layer's product, prepared once


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16", "int4-g128", "int3-g128", "nf4", "fp8-e4m3", "llm-int8"])
def test_a_multiplier_does_what_matmul_does(name):
    rng = np.random.default_rng(95)
    q = rq.quantize(rng.standard_normal((20, 256)).astype(np.float32), name)
    for backend in ("numba", "numpy"):
        multiply = ops.multiplier(q, backend)
        for shape in ((256,), (1, 1, 256), (2, 9, 256), (0, 256)):
            x = rng.standard_normal(shape).astype(np.float32)
            np.testing.assert_array_equal(multiply(x), rq.matmul(x, q, backend=backend))


@pytest.mark.parametrize("grid", ["int4-g32", "int3-row-sym", IntGrid(4, 32, scale_dtype="float32")])
def test_awq_rounds_its_candidates_alike(grid):
    w, x = weights((70, 96)), np.random.default_rng(5).normal(size=(40, 96)).astype(np.float32)
    x[:, 7] *= 30
    wide = weights((1, 96)) + np.float32(2e5)  # beyond float16 at the larger exponents
    for ws in ([w], [w, w[:33] * 2], [w, wide]):
        got, want = (awq.search(ws, x, grid, backend=backend, include_one=True) for backend in ("numba", "numpy"))
        np.testing.assert_array_equal(got.errors, want.errors)
        np.testing.assert_array_equal(got.scales, want.scales)
    assert np.isinf(got.errors).any() == isinstance(grid, str)
    seen = []
    awq.search([w], x, grid, backend="numba", n_grid=2, forward=lambda ws: seen.append(ws) or x @ ws[0].T)
    assert len(seen) == 3  # the weights as they are, and two candidates


CLIPPED = [("int4-g128", (1, 1), 1), ("int4-g32", (37, 100), 50), ("int3-row-sym", (33, 70), 300)]


@pytest.mark.parametrize(("grid", "shape", "tokens"), [*CLIPPED, ("int2-g48", (16, 200), 20)])
def test_awq_clips_alike(grid, shape, tokens):
    rng = np.random.default_rng(7)
    w, x = weights(shape), rng.normal(size=(tokens, shape[1])).astype(np.float32)
    x *= np.exp(rng.normal(size=shape[1])).astype(np.float32)
    for given in (w, np.abs(w), w * np.float32(1e-30), np.asfortranarray(w)):
        got, want = (awq.clip(given, x, grid, backend=backend) for backend in ("numba", "numpy"))
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert np.mean(got != want) <= 0.01  # two errors that differ in their last place
    assert (awq.clip(np.zeros_like(w), x, grid, backend="numba") == 0).all()
