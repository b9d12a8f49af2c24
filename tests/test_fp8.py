"""FP8: the overflow boundary from the format's definition, scales, both sides in 8 bits."""

import ml_dtypes
import numpy as np
import pytest

import refquant as rq
from refquant.codebooks import E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ
from refquant.errors import BadInput, UnknownName
from refquant.methods import fp8
from refquant.methods.registry import find_method, rows

RNG = np.random.default_rng(0)
W = (RNG.normal(size=(200, 300)) * RNG.lognormal(0, 1, (200, 1))).astype(np.float32)

NAN, INF = float("nan"), float("inf")
# x, then the value it becomes: E4M3, E4M3 FNUZ, E5M2, where overflow is "nan". From the definitions: the largest values
# are 448 = 1.75 * 2^8, 240 = 1.875 * 2^7, 57344 = 1.75 * 2^15; the next steps would be 480, 256, 65536; a tie goes to
# the even fraction: 464 down to 1.110, 248 up to 10.000 and so out, 61440 up to 10.00 and so out.
BOUNDARY = [
    (448.0, 448, NAN, 448),
    (464.0, 448, NAN, 448),  # in E5M2 464 lies nearer to 448 than to 512
    (465.0, NAN, NAN, 448),
    (480.0, NAN, NAN, 512),  # a tie in E5M2, between 1.75 * 2^8 and 2^9
    (240.0, 240, 240, 256),  # a tie in E5M2, between 1.75 * 2^7 and 2^8
    (247.9, 240, 240, 256),
    (248.0, 256, NAN, 256),  # a tie in E4M3, between 1.875 * 2^7 and 2^8
    (57344.0, NAN, NAN, 57344),
    (61439.0, NAN, NAN, 57344),
    (61440.0, NAN, NAN, INF),
    (INF, NAN, NAN, INF),
    (NAN, NAN, NAN, NAN),
    (2.0**-10, 0, 2.0**-10, 2.0**-10),  # a tie in E4M3, between 0 and 2^-9
    (3 * 2.0**-10, 2.0**-8, 3 * 2.0**-10, 3 * 2.0**-10),
    (2.0**-17, 0, 0, 0),  # a tie in E5M2, between 0 and 2^-16
]


@pytest.mark.parametrize(("x", "e4m3", "fnuz", "e5m2"), BOUNDARY)
@pytest.mark.parametrize("sign", [1, -1])
def test_case_42_the_overflow_boundary_and_the_ties(x, e4m3, fnuz, e5m2, sign):
    for book, want in ((E4M3, e4m3), (E4M3_FNUZ, fnuz), (E5M2, e5m2)):
        number = np.float32(sign * x)
        got = book.decode(book.encode(number, "nan"))
        assert np.array_equal(got, np.float32(sign * want), equal_nan=True), book.name
        saturated = book.decode(book.encode(number))
        if np.isfinite(x):
            assert saturated == (np.float32(sign * want) if np.isfinite(want) else sign * book.max), book.name
        else:
            assert np.array_equal(saturated, sign * np.float32(x if np.isnan(x) else book.max), equal_nan=True)


def test_case_42_minus_zero_and_nan_codes():
    zero = np.float32([0.0, -0.0])
    assert E4M3.encode(zero).tolist() == E5M2.encode(zero).tolist() == [0x00, 0x80]
    assert E4M3_FNUZ.encode(zero).tolist() == E5M2_FNUZ.encode(zero).tolist() == [0, 0]
    assert E4M3_FNUZ.encode(np.float32([-(2.0**-12), np.nan])).tolist() == [0, 0x80]
    assert [book.max for book in (E4M3, E4M3_FNUZ, E5M2, E5M2_FNUZ)] == [448, 240, 57344, 57344]


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"])
@pytest.mark.parametrize("shared", ["", "-tensor", "-block"])
def test_weights_are_ml_dtypes_cast_of_w_over_the_scale(name, shared):
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn}.get(name) or getattr(ml_dtypes, f"float8_{name}")
    q = rq.quantize(W, f"fp8-{name}{shared}")
    peak = {"": np.abs(W).max(axis=1, keepdims=True), "-tensor": np.abs(W).max().reshape(1, 1)}.get(shared)
    if peak is None:
        parts = [[np.abs(W[i : i + 128, j : j + 128]).max() for j in (0, 128, 256)] for i in (0, 128)]
        peak = np.array(parts)
    scale = peak / np.float32(ml_dtypes.finfo(dtype).max)
    stored = q.arrays["weight_scale_inv" if shared == "-block" else "weight_scale"]
    assert np.array_equal(stored, scale[0] if shared == "-tensor" else scale)
    spread = scale if shared != "-block" else np.repeat(np.repeat(scale, 128, 0)[:200], 128, 1)[:, :300]
    codes = (W / spread).astype(dtype)
    assert np.array_equal(q.arrays["weight"], codes.view(np.uint8))
    assert np.array_equal(rq.dequantize(q), codes.astype(np.float32) * spread)


def test_bits_per_weight():
    assert rq.quantize(W, "fp8-e4m3").bits_per_weight == 8 + 32 / 300
    assert rq.quantize(W, "fp8-e4m3-tensor").nbytes == W.size + 4
    assert rq.quantize(np.ones((256, 256), np.float32), "fp8-e4m3-block").nbytes == 65536 + 4 * 4


def test_random_bytes_are_legal_and_nan_shows():
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    q = rq.Quantized("fp8-e4m3", (2, 128), {"weight": codes, "weight_scale": np.ones((2, 1), np.float32)})
    want = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(rq.dequantize(q), want, equal_nan=True)
    assert np.isnan(want).sum() == 2


def test_the_error_is_relative_to_each_weight():
    w = np.float32([[1000, 3.3, 0.11, 0.017]])  # an integer grid with this range has steps of 7.8
    assert (np.abs(rq.dequantize(rq.quantize(w, "fp8-e4m3")) / w - 1) <= 2**-4).all()


# ---- activations


def test_dynamic_scales_use_the_whole_range_of_every_token():
    x = (RNG.normal(size=(5, 64)) * np.array([[1e-4], [1], [50], [3e4], [1e30]])).astype(np.float32)
    scale = fp8.input_scale(x)
    assert scale.shape == (5, 1)
    assert (np.abs(E4M3.decode(fp8.quantize_inputs(x, scale))).max(axis=1) == 448).all()


def test_a_static_scale_saturates_what_calibration_did_not_see():
    scale = fp8.input_scale(RNG.uniform(-1, 1, (50, 64)).astype(np.float32), per="tensor")
    assert scale.shape == (1, 1)
    x = np.float32([[0.5, 3.0, -7.0]])
    saturated = E4M3.decode(fp8.quantize_inputs(x, scale)) * scale
    assert np.allclose(saturated, [[0.5, 448 * scale[0, 0], -448 * scale[0, 0]]], rtol=2**-4)
    assert np.isnan(E4M3.decode(fp8.quantize_inputs(x, scale, overflow="nan")))[0].tolist() == [False, True, True]


def test_w8a8_is_the_product_of_both_casts():
    x, q = RNG.normal(size=(2, 3, 300)).astype(np.float32), rq.quantize(W, "fp8-e4m3")
    scale = np.abs(x).max(axis=2, keepdims=True) / np.float32(448)
    x8 = (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale
    want = x8 @ rq.dequantize(q).astype(np.float64).T
    got = fp8.matmul(x, q)
    assert got.shape == (2, 3, 200)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert np.abs(rq.matmul(x, q) - want).max() > 1e-3 * np.abs(want).max()  # weight-only: x is not cast
    static = fp8.matmul(x, q, scale=fp8.input_scale(x, per="tensor"))
    assert 0 < np.abs(static - want).max() < 0.1 * np.abs(want).max()


def test_an_unknown_kind_of_scale_is_refused():
    with pytest.raises(BadInput, match="token"):
        fp8.input_scale(W, per="channel")
    with pytest.raises(BadInput, match="NaN"):
        fp8.matmul(np.full((1, 300), np.nan, np.float32), rq.quantize(W, "fp8-e4m3"))


def test_the_method_takes_its_own_formats_only():
    layer = find_method("fp8").layer
    assert layer(W, rq.as_grid("fp8-e5m2"), None).format == "fp8-e5m2"
    with pytest.raises(BadInput, match="rtn"):
        layer(W, rq.as_grid("int4-g128"), None)
    with pytest.raises(UnknownName):
        find_method("fp4")
    assert [row.grid for row in rows() if row.method == "fp8"] == ["fp8-e4m3"]
