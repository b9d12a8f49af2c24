"""The Numba decoders and matmuls: ggml's bits; products as accurate as a float32 loop."""

import ggml
import numba
import numpy as np
import pytest
from test_kquants import NAMES

import refquant as rq
from refquant import ops
from refquant.errors import BadInput
from refquant.quantized import Quantized

GRIDS = ["int4-g128", "int4-g32-sym", "int3-g128", "int8-row", "int8-g16-sym", "int2-g64", "int5-g7", "int4-g24"]


@pytest.fixture
def threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


def random_blocks(name, n, blocks, seed):
    """Every byte string is a legal block, NaN and infinite scales included."""
    weights, size = ggml.sizes(name)
    data = np.random.default_rng(seed).integers(0, 256, (n, blocks * size), dtype=np.uint8)
    return Quantized(name, (n, blocks * weights), {"blocks": data})


def assert_same_bits(got, want):
    """NaN at the same places, every other value the same, the sign of zero too."""
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", NAMES)
def test_decode_equals_ggml(name):
    for n, blocks in ((1, 1), (3, 5), (200, 7)):
        q = random_blocks(name, n, blocks, seed=n)
        assert_same_bits(rq.dequantize(q, backend="numba"), ggml.dequantize(q.arrays["blocks"], name))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_every_half_decodes(name):
    """All 65,536 patterns; 257 columns, so that the last block is short."""
    data = np.resize(np.arange(65536, dtype=np.uint16), (256, 257))
    q = Quantized(name, (256, 257), {"blocks": data.view(np.uint8)})
    got, want = rq.dequantize(q, backend="numba"), ggml.dequantize(q.arrays["blocks"], name).reshape(256, 257)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 128), (5, 257), (2, 1000), (70, 512)])
def test_grids_are_quantized_and_decoded_as_the_reference_does(name, shape):
    rng = np.random.default_rng(50)
    w = rng.standard_t(3, shape).astype(np.float32)
    w[rng.random(shape) < 0.1] = 0
    w[0, :60] = 0
    got, want = rq.quantize(w, name, backend="numba"), rq.quantize(w, name)
    assert got.arrays.keys() == want.arrays.keys()
    for field, array in want.arrays.items():
        np.testing.assert_array_equal(got.arrays[field], array, strict=True)
    assert_same_bits(rq.dequantize(got, backend="numba"), rq.dequantize(want))


@pytest.mark.parametrize("name", ["int4-g128", "int3-g32-sym"])
def test_groups_by_an_index(name):
    """What GPTQ with act_order writes."""
    rng = np.random.default_rng(51)
    q = rq.quantize(rng.standard_normal((9, 512)).astype(np.float32), name)
    g_idx = rng.permutation(rq.grids.as_grid(name).group_index(512))
    q = Quantized(name, q.shape, q.arrays | {"g_idx": g_idx})
    assert_same_bits(rq.dequantize(q, backend="numba"), rq.dequantize(q))
    x = rng.standard_normal((2, 512)).astype(np.float32)
    np.testing.assert_allclose(rq.matmul(x, q, backend="numba"), rq.matmul(x, q), rtol=1e-4, atol=1e-4)
    bad = Quantized(name, q.shape, q.arrays | {"g_idx": g_idx + np.int32(1)})
    with pytest.raises(BadInput, match="g_idx"):
        rq.dequantize(bad, backend="numba")


def test_a_scale_that_float16_cannot_hold_is_refused():
    with pytest.raises(BadInput, match="does not fit float16"):
        rq.quantize(np.full((2, 64), 1e9, np.float32), "int4-g32", backend="numba")


# ---- matmul


def assert_as_accurate_as_a_loop(got, x, w):
    """Finite, and the largest error at most twice that of a float32 loop over the columns."""
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    loop = np.zeros(exact.shape, np.float32)
    for j in range(w.shape[1]):
        loop += x[:, j, None] * w[None, :, j]
    assert got.dtype == np.float32
    assert got.shape == exact.shape
    assert np.isfinite(got).all()
    worst = np.abs(got - exact).max(initial=0)
    # among few results the loop's can be exact by luck: one rounding of the sum of magnitudes is granted
    magnitude = (np.abs(x).astype(np.float64) @ np.abs(w).T.astype(np.float64)).max(initial=0)
    assert worst <= max(2 * np.abs(loop - exact).max(initial=0), magnitude * 2.0**-24)


def sizes_for(name):
    if name in NAMES:
        return (ggml.sizes(name)[0], 5 * max(32, ggml.sizes(name)[0]), 4096)
    return (1, 100, 192, 512, 576, 4096)


@pytest.mark.parametrize("name", NAMES + GRIDS)
def test_matmul_is_as_accurate_as_a_float32_loop(name):
    rng = np.random.default_rng(52)
    for k in sizes_for(name):
        for n in (1, 37):
            q = rq.quantize((rng.standard_normal((n, k)) * 0.02).astype(np.float32), name, backend="numba")
            w = rq.dequantize(q)
            for m in (0, 1, 3, 33):
                x = rng.standard_normal((m, k)).astype(np.float32)
                assert_as_accurate_as_a_loop(rq.matmul(x, q, backend="numba"), x, w)


@pytest.mark.parametrize("name", ["int2-g128", "int3-g128", "int4-g128", "int4-g32-sym", "int8-g128", "int4-row"])
@pytest.mark.parametrize("k", [64, 576, 1536])
def test_a_token_is_multiplied_without_decoding_also_where_the_last_group_is_short(name, k, monkeypatch):
    """The width of SmolLM2 is four and a half groups of 128."""
    ops.load_backend("numba")
    from refquant_kernels.cpu import matmul_grids

    rng = np.random.default_rng(59)
    q = rq.quantize((rng.standard_normal((9, k)) * 0.02).astype(np.float32), name)
    x = rng.standard_normal((2, k)).astype(np.float32)
    monkeypatch.setattr(matmul_grids, "decode_rows", None)
    assert_as_accurate_as_a_loop(rq.matmul(x, q, backend="numba"), x, rq.dequantize(q))


def test_the_accuracy_rule_rejects_planted_faults():
    rng = np.random.default_rng(53)
    w, x = (rng.standard_normal(size).astype(np.float32) for size in ((16, 512), (2, 512)))
    good = x @ w.T
    assert_as_accurate_as_a_loop(good, x, w)
    nan = good.copy()
    nan[1, 3] = np.nan
    cut = x[:, :-1] @ w[:, :-1].T
    scaled = good.copy()
    scaled[:, 5] *= np.float32(1.01)
    for bad in (nan, cut, scaled, good[:, ::-1], good.astype(np.float64)):
        with pytest.raises(AssertionError):
            assert_as_accurate_as_a_loop(bad, x, w)


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16", "F32", "int4-g128", "int3-g128", "int8-row"])
def test_shapes_and_layouts_of_activations(name):
    rng = np.random.default_rng(54)
    q = rq.quantize(rng.standard_normal((6, 512)).astype(np.float32), name)
    for tokens in (3, 9):  # row by row, and by panels
        x = rng.standard_normal((2, tokens, 512)).astype(np.float32)
        want = ops.matmul(x, q)
        for given in (x, x.astype(np.float64), np.asfortranarray(x), np.repeat(x, 2, axis=2)[..., ::2]):
            np.testing.assert_allclose(rq.matmul(given, q, backend="numba"), want, rtol=1e-4, atol=1e-4)
    assert rq.matmul(x[0, 0], q, backend="numba").shape == (6,)
    assert rq.matmul(x[:, :0], q, backend="numba").shape == (2, 0, 6)
    with pytest.raises(BadInput, match="512 inputs"):
        rq.matmul(x[..., :-1], q, backend="numba")


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "int4-g128", "int8-row", "int3-g128"])
def test_the_number_of_threads_does_not_show(name, threads):
    rng = np.random.default_rng(55)
    w, x = rng.standard_normal((1500, 768)).astype(np.float32), rng.standard_normal((1, 768)).astype(np.float32)
    results = []
    for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        threads(count)
        q = rq.quantize(w, name, backend="numba")
        results.append((rq.dequantize(q, backend="numba"), rq.matmul(x, q, backend="numba")))
    for decoded, product in results[1:]:
        np.testing.assert_array_equal(decoded, results[0][0])
        np.testing.assert_array_equal(product, results[0][1])


@pytest.mark.parametrize("name", ["Q4_K", "int4-g128"])
def test_nan_and_infinity_in_activations_are_not_hidden(name):
    q = rq.quantize(np.random.default_rng(56).standard_normal((8, 512)).astype(np.float32), name)
    for m in (1, 40):
        x = np.ones((m, 512), np.float32)
        x[-1, 300] = np.nan
        y = rq.matmul(x, q, backend="numba")
        assert np.isnan(y[-1]).all()
        assert np.isfinite(y[:-1]).all()


# ---- activations of 24 bits

IN_THREE_BYTES = ["Q8_0", "IQ4_NL", "Q4_1", "Q5_0", "MXFP4", "Q2_K", "Q6_K", "TQ1_0", "TQ2_0", "int4-g128", "int4-row"]


@pytest.mark.parametrize("name", IN_THREE_BYTES)
def test_activations_far_apart_in_size_are_multiplied_as_accurately_as_by_a_loop(name):
    """One channel in each run a hundred times larger; runs of a millionth; runs and whole tokens of 0."""
    rng = np.random.default_rng(57)
    q = rq.quantize((rng.standard_normal((64, 2304)) * 0.02).astype(np.float32), name, backend="numba")
    x = rng.standard_normal((4, 2304)).astype(np.float32)
    x[0, 5::256] *= 100
    x[1, :512] *= 1e-6
    x[1, 512:1024] = 0
    x[2] *= 1e-20
    x[3] = 0
    w = rq.dequantize(q)
    for i in range(4):
        assert_as_accurate_as_a_loop(rq.matmul(x[i : i + 1], q, backend="numba"), x[i : i + 1], w)


@pytest.mark.parametrize("name", IN_THREE_BYTES)
def test_activations_that_24_bits_cannot_hold_go_another_way(name):
    rng = np.random.default_rng(58)
    q = rq.quantize(rng.standard_normal((8, 512)).astype(np.float32), name, backend="numba")
    w = rq.dequantize(q)
    tiny = (rng.standard_normal((1, 512)) * 1e-35).astype(np.float32)
    assert_as_accurate_as_a_loop(rq.matmul(tiny, q, backend="numba"), tiny, w)
    assert (rq.matmul(np.zeros((2, 512), np.float32), q, backend="numba") == 0).all()
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((2, 512), np.float32)
        x[1, 300] = bad
        with np.errstate(invalid="ignore"):
            got, want = rq.matmul(x, q, backend="numba"), rq.matmul(x, q)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(got[1], want[1])
