"""MXFP4 and NVFP4 against the specification written out, compressed-tensors' arrays, ml_dtypes and gguf-py."""

import math
import runpy
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest

import refquant as rq
from refquant.errors import BadInput
from refquant.methods import gptq, mx

MAKER = Path(__file__).parent / "data" / "make_compressed_tensors.py"


@pytest.fixture(scope="module")
def theirs():
    with np.load(MAKER.with_name("compressed_tensors.npz")) as file:
        return dict(file)


def blocks_of(w, size):
    return w.reshape(len(w), -1, size)


def weights(seed=0, shape=(40, 128)):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.lognormal(0, 3, (shape[0], 1))).astype(np.float32)


def test_mxfp4_is_the_specification_block_by_block():
    w = weights()
    w[0, :32] = np.tile([4, 5, 6, 7, 7.99, 0.25, 0.75, 2.5], 4) * np.tile([1, -1], 16)  # saturation and ties
    q = rq.quantize(w, "mxfp4")
    codes = rq.ops.unpack(q)["codes"].reshape(40, 4, 32)
    for i in range(40):
        for b in range(4):
            block = [float(v) for v in w[i, 32 * b : 32 * b + 32]]
            shared = math.floor(math.log2(max(map(abs, block)))) - 2
            assert q.arrays["weight_scale"][i, b] == shared + 127
            scaled = np.array([v / 2.0**shared for v in block], np.float32)
            want = np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn)
            assert np.array_equal(codes[i, b], want.view(np.uint8))
            decoded = want.astype(np.float32) * np.float32(2.0) ** shared
            assert np.array_equal(rq.dequantize(q)[i, 32 * b : 32 * b + 32], decoded)


@pytest.mark.parametrize("power", [-140, -126, -124, -20, 0, 3, 127])
def test_the_shared_exponent_at_powers_of_two(power):
    peak = np.float32(2.0**power)
    exponent = {"at": peak, "below": np.nextafter(peak, np.float32(0)), "above": np.nextafter(peak, np.float32(np.inf))}
    got = {k: int(rq.quantize(np.full((1, 32), v), "mxfp4").arrays["weight_scale"][0, 0]) for k, v in exponent.items()}
    want = {k: max(math.floor(math.log2(float(v))) - 2, -127) + 127 for k, v in exponent.items()}
    assert got == want


def test_a_block_of_zeros_is_the_smallest_scale_and_zeros():
    q = rq.quantize(np.zeros((1, 32), np.float32), "mxfp4")
    assert not q.arrays["weight_scale"].any()
    assert not rq.dequantize(q).any()


def test_mxfp4_decodes_as_gguf_decodes_the_same_numbers():
    rng = np.random.default_rng(1)
    codes, e = rng.integers(0, 16, (6, 32), np.uint8), rng.integers(0, 255, (6, 1), np.uint8)
    q = rq.ops.pack({"codes": codes, "scales": e}, "mxfp4", (6, 32))
    halves = codes[:, :16] | codes[:, 16:] << 4  # ggml's block: exponent, then elements j and j + 16 in byte j
    want = gguf.dequantize(np.concatenate([e, halves], axis=1), gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(rq.dequantize(q), want)
    assert rq.dequantize(q).any()


def test_the_first_code_is_in_the_low_half():
    w = np.zeros((1, 32), np.float32)
    w[0, :3] = 4, -0.5, 6
    assert rq.quantize(w, "mxfp4").arrays["weight_packed"][0, :2].tolist() == [0x96, 0x07]  # codes 6 and 9; 7 and 0
    assert rq.quantize(w[:, :16], "nvfp4").arrays["weight_packed"][0, :2].tolist() == [0x96, 0x07]


def test_nvfp4_is_compressed_tensors_but_for_scales_of_zero(theirs):
    q = rq.quantize(theirs["w"], "nvfp4")
    assert np.array_equal(q.arrays["weight_global_scale"], theirs["nvfp4_global"])
    assert np.array_equal(q.arrays["weight_packed"], theirs["nvfp4_packed"])
    got, want = q.arrays["weight_scale"], theirs["nvfp4_scales"]
    differ = got != want
    assert (want[differ] == 0x20).all()  # 0.125, which it puts where the scale would be 0
    assert (got[differ] == 0x01).all()  # 2^-9
    peaks = np.abs(blocks_of(theirs["w"], 16)).max(axis=2)
    assert np.array_equal(differ, peaks / 6 * theirs["nvfp4_global"] <= 2.0**-10)


def test_where_compressed_tensors_takes_the_next_exponent_for_mxfp4(theirs):
    peaks = theirs["peaks"]
    ours = rq.quantize(np.repeat(peaks[:, None], 32, axis=1), "mxfp4").arrays["weight_scale"][:, 0]
    mantissa = peaks / np.exp2(np.floor(np.log2(peaks)))
    assert np.array_equal(theirs["mxfp4_exponents"].astype(int) - ours, (mantissa >= 1.75).astype(int))
    assert (mantissa >= 1.75).any()


def test_nvfp4_decodes_to_the_product_of_its_parts():
    rng = np.random.default_rng(2)
    arrays = {
        "weight_packed": rng.integers(0, 256, (4, 32), np.uint8),
        "weight_scale": rng.integers(0, 127, (4, 4), np.uint8),
        "weight_global_scale": np.float32([37.5]),
    }
    nibbles = np.stack([arrays["weight_packed"] & 15, arrays["weight_packed"] >> 4], axis=2).reshape(4, 64)
    value = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    scale = arrays["weight_scale"].view(ml_dtypes.float8_e4m3fn).astype(np.float32) / np.float32(37.5)
    got = rq.dequantize(rq.Quantized("nvfp4", (4, 64), arrays))
    assert np.array_equal(got, value * np.repeat(scale, 16, axis=1))


@pytest.mark.parametrize(("name", "nan"), [("mxfp4", 255), ("nvfp4", 0x7F)])
def test_a_scale_of_nan_makes_its_block_nan_and_no_other(name, nan):
    q = rq.quantize(weights(), name)
    q.arrays["weight_scale"][3, 1] = nan
    size = 128 // q.arrays["weight_scale"].shape[1]
    bad = np.isnan(rq.dequantize(q))
    assert bad[3, size : 2 * size].all()
    assert bad.sum() == size


def test_bits_per_weight():
    assert rq.quantize(weights(), "mxfp4").bits_per_weight == 4.25
    assert rq.quantize(weights(), "nvfp4").nbytes == 40 * 128 * 4.5 / 8 + 4


@pytest.mark.parametrize(("name", "k"), [("mxfp4", 48), ("nvfp4", 24), ("mxfp4", 1)])
def test_a_row_of_part_blocks_is_refused(name, k):
    with pytest.raises(BadInput, match="blocks of"):
        rq.quantize(np.ones((2, k), np.float32), name)
    with pytest.raises(BadInput, match="blocks of"):
        rq.methods.rtn.quantize(np.ones((2, k), np.float32), name)


def test_nvfp4_scales_need_the_matrix():
    w, x = weights(), np.random.default_rng(3).normal(size=(300, 128))
    with pytest.raises(BadInput, match="global scale"):
        rq.as_grid("nvfp4").fit(w[:, :16])
    q = gptq.quantize(w, gptq.hessian(x), "nvfp4").quantized
    assert np.array_equal(q.arrays["weight_global_scale"], rq.quantize(w, "nvfp4").arrays["weight_global_scale"])


@pytest.mark.parametrize("value", [0, 1e-40, 3e38])
def test_the_global_scale_of_extreme_matrices_is_finite(value):
    q = rq.quantize(np.full((1, 16), value, np.float32), "nvfp4")
    assert 0 < q.arrays["weight_global_scale"][0] < np.inf
    assert np.isfinite(rq.dequantize(q)).all()
    if value == 3e38:
        assert np.allclose(rq.dequantize(q), value, rtol=1e-6)


def test_a_scale_that_is_no_power_of_two_is_refused():
    grid = mx.MXFP4Grid("mxfp4", rq.as_grid("mxfp4").codebook, 32)
    with pytest.raises(BadInput, match="powers of two"):
        grid.fields(np.zeros((1, 32), np.uint8), np.float32([[0.3]]), None)


@pytest.mark.interop
def test_compressed_tensors_still_computes_the_committed_arrays(theirs):
    pytest.importorskip("compressed_tensors")
    maker = runpy.run_path(str(MAKER))
    inputs = {key: theirs[key] for key in ("w", "peaks", "codes3", "codes5", "codes6")}
    for key, value in maker["compute"](inputs).items():
        if key != "version":
            assert np.array_equal(value, theirs[key]), key
