"""LLM.int8 against what bitsandbytes computed (tests/data/make_bitsandbytes.py), and against loops."""

from pathlib import Path

import numpy as np
import pytest

import refquant as rq
from refquant.errors import BadInput
from refquant.methods import gptq, llm_int8
from refquant.methods.registry import find_method

# The constant of the backend that made the committed arrays; 1/127² is 6.2000124e-05.
BACKEND = 6.200124e-05


@pytest.fixture(scope="module")
def theirs():
    with np.load(Path(__file__).parent / "data" / "bitsandbytes.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def q(theirs):
    return rq.quantize(theirs["w"], "llm-int8")


def test_weights_are_bitsandbytes(theirs, q):
    assert np.array_equal(q.arrays["CB"], theirs["CB"])
    assert np.array_equal(q.arrays["SCB"], theirs["SCB"])
    assert np.array_equal(rq.dequantize(q)[:2], theirs["int8_decoded"])
    assert q.bits_per_weight == 8 + 32 / 264


@pytest.mark.parametrize(("key", "threshold"), [("mixed", 6.0), ("plain", 0.0)])
def test_inputs_are_bitsandbytes(theirs, key, threshold):
    large = llm_int8.outliers(theirs["x"], threshold)
    CA, SCA = llm_int8.rowwise(np.where(large, 0, theirs["x"]).astype(np.float16))
    CA[:, large.any(axis=0)] = 0
    assert np.array_equal(CA, theirs[f"{key}_CA"])
    assert np.array_equal(SCA, theirs[f"{key}_SCA"])


@pytest.mark.parametrize(("key", "threshold"), [("mixed", 6.0), ("plain", 0.0)])
def test_products_are_bitsandbytes(theirs, q, key, threshold):
    got = llm_int8.matmul(theirs["x"], q, threshold, constant=BACKEND)
    if threshold:  # the columns apart are a float32 product, whose order of summation is free
        assert np.abs(got - theirs[f"{key}_y"]).max() < 4e-6
    else:
        assert np.array_equal(got, theirs[f"{key}_y"])
    ours = llm_int8.matmul(theirs["x"], q, threshold)
    assert np.array_equal(ours, rq.matmul(theirs["x"], q)) == (threshold == 6.0)
    off = np.abs(ours - theirs[f"{key}_y"]).max()
    assert 1e-5 < off < 2e-5 * np.abs(theirs["plain_y"]).max()


def test_the_constant_is_one_over_127_squared():
    assert pytest.approx(6.2000124e-05, rel=1e-9) == llm_int8.DEQUANTIZE
    assert BACKEND / llm_int8.DEQUANTIZE - 1 == pytest.approx(18e-6, rel=1e-3)


def test_the_threshold_is_met_at_6_itself_after_rounding_to_float16(theirs):
    x = theirs["x"]
    assert (x[4, 90], x[5, 91]) == (6, -6)
    assert x[6, 92] == np.nextafter(np.float32(6), 0)  # which float16 rounds to 6
    columns = np.flatnonzero(llm_int8.outliers(x).any(axis=0))
    assert columns.tolist() == theirs["columns"].tolist() == [17, 90, 91, 92]
    assert not llm_int8.outliers(x, 0).any()
    below = np.full((1, 2), np.nextafter(np.float16(6), np.float16(0)), np.float32)
    assert not llm_int8.outliers(below).any()


def test_the_product_is_the_definition_in_a_loop(q):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 264)).astype(np.float32)
    x[1, 7], x[2, 200] = 30, -8
    CB, SCB = q.arrays["CB"].astype(int), q.arrays["SCB"].astype(float)
    want = np.zeros((3, 24))
    apart = {7, 200}
    for t in range(3):
        rest = [float(np.float16(v)) for v in x[t]]
        inliers = [v for v in rest if abs(v) < 6]
        s = max(map(abs, inliers))
        for o in range(24):
            total = sum(round(rest[j] * 127 / s) * int(CB[o, j]) for j in range(264) if j not in apart)
            want[t, o] = total * s * SCB[o] / 127**2 + sum(float(x[t, j]) * CB[o, j] * SCB[o] / 127 for j in apart)
    assert np.abs(rq.matmul(x, q) - want).max() < 1e-5


def test_decomposition_is_what_makes_outliers_harmless():
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(64, 512)).astype(np.float32), rng.normal(size=(100, 512)).astype(np.float32)
    x[:, [3, 300]] *= 60
    q, exact = rq.quantize(w, "llm-int8"), x @ w.T
    error = {t: np.square(llm_int8.matmul(x, q, t) - exact).sum() / np.square(exact).sum() for t in (6.0, 0.0)}
    assert error[6.0] < 1e-4
    assert error[0.0] > 20 * error[6.0]
    assert llm_int8.outliers(x).any(axis=0).mean() == 2 / 512


def test_the_threshold_travels_with_the_layer(theirs, q):
    layer = find_method("llm-int8").layer
    plain = layer(theirs["w"], rq.as_grid("llm-int8"), None, threshold=0)
    assert np.array_equal(rq.matmul(theirs["x"], plain), llm_int8.matmul(theirs["x"], q, 0))
    assert "threshold" not in layer(theirs["w"], rq.as_grid("llm-int8"), None, threshold=6.0).arrays
    assert np.array_equal(rq.dequantize(plain), rq.dequantize(q))
    with pytest.raises(BadInput, match="threshold"):
        llm_int8.with_threshold(q, float("nan"))


def test_the_int32_product_is_exact_where_float32_is_not():
    a = np.full((1, 4097), 127, np.int8)
    a[0, 0] = 1
    assert llm_int8.int32_product(a, np.full((1, 4097), 127, np.int8))[0, 0] == 127 + 4096 * 127**2


def test_zero_rows_zero_tokens_and_the_batch_axes():
    w = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
    w[2] = 0
    q = rq.quantize(w, "llm-int8")
    assert not rq.dequantize(q)[2].any()
    y = rq.matmul(np.zeros((2, 3, 16), np.float32), q)
    assert y.shape == (2, 3, 4)
    assert not y.any()
    assert rq.matmul(np.ones(16, np.float32), q).shape == (4,)


def test_weights_and_inputs_beyond_float16_are_refused():
    with pytest.raises(BadInput, match="65504"):
        rq.quantize(np.full((1, 2), 1e5, np.float32), "llm-int8")
    q = rq.quantize(np.ones((1, 2), np.float32), "llm-int8")
    x = np.float32([[1e5, 1]])
    assert llm_int8.matmul(x, q) == pytest.approx(100001)  # an outlier, so it is never rounded
    with pytest.raises(BadInput, match="65504"):
        llm_int8.matmul(x, q, threshold=0)
    with pytest.raises(BadInput, match="threshold"):
        llm_int8.matmul(x, q, threshold=-1)
    with pytest.raises(BadInput, match="NaN"):
        rq.matmul(np.float32([[np.nan, 1]]), q)


def test_every_code_and_random_bytes_decode():
    codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    q = rq.Quantized("llm-int8", (2, 128), {"CB": codes, "SCB": np.float32([127, 1])})
    want = codes * np.float32([[127], [1]]) * np.float32(1 / 127)
    assert np.array_equal(rq.dequantize(q), want)


def test_gptq_on_this_grid_loses_less():
    rng = np.random.default_rng(2)
    w, x = rng.normal(size=(32, 128)).astype(np.float32), rng.normal(size=(400, 20)) @ rng.normal(size=(20, 128))
    q = gptq.quantize(w, gptq.hessian(x), "llm-int8").quantized
    assert np.abs(q.arrays["CB"].astype(int)).max() == 127
    error = [np.square((rq.dequantize(each) - w) @ x.T).sum() for each in (q, rq.quantize(w, "llm-int8"))]
    assert error[0] < 0.7 * error[1]


def test_a_model_layer_computes_with_the_decomposition_whatever_the_backend():
    import torch

    from refquant.models import QuantLinear

    w, x = np.random.default_rng(3).normal(size=(2, 8, 8)).astype(np.float32)
    x[0, 0] = 50
    q = rq.quantize(w, "llm-int8")
    layer = QuantLinear(q, backend="dense")
    assert layer.backend == "numpy"
    assert np.array_equal(layer(torch.from_numpy(x)).numpy(), rq.matmul(x, q))
    assert QuantLinear(rq.quantize(w, "fp8-e4m3")).backend == "dense"
    assert find_method("llm-int8").rows[0].use_case == "Simple, safe compression"


@pytest.mark.parametrize("k", [1, 1023, 1024, 1025, 4096])
def test_the_integer_product_is_exact_up_to_the_largest_sums(k):
    """All codes at their extremes, of one sign and of both: sums of up to k 128^2, compared with int64."""
    a = np.full((3, k), -128, np.int8)
    a[1] = np.random.default_rng(k).choice(np.array([-128, 127], np.int8), k)
    a[2] = np.random.default_rng(k).integers(-128, 128, k)
    expected = a.astype(np.int64) @ a.astype(np.int64).T
    assert np.array_equal(llm_int8.int32_product(a, a), expected)
