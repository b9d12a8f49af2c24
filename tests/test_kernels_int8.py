"""Products with activations of 8 bits, against their own definition; and the plain path of machines without AVX-512."""

import ctypes
import os
import subprocess
import sys

import ggml
import numba
import numpy as np
import pytest

import refquant as rq
from refquant import ops
from refquant.errors import BadInput
from refquant.quantized import Quantized, find_format

K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
OF_256 = [*K_QUANTS, "IQ4_XS", "TQ1_0", "TQ2_0"]
OF_32 = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"]
GRIDS = {"int4-g128": 128, "int4-g64-sym": 64, "int4-g192": 64, "int4-row": 128, "int8-row": 128, "int8-g64-sym": 64}


def product(x, q):
    ops.load_backend("numba")
    return ops.find_op("matmul_int8", find_format(q.format).family)(x, q, backend="numba")


def ggmls_rounding(x, kind, size, head, dtype):
    """Scales [blocks] and codes [blocks, weights] that ggml makes of x: records of `size` bytes, codes after `head`."""
    weights = {"q8_0": 32, "q8_1": 32, "q8_K": 256}[kind]
    blocks = np.empty((x.size // weights, size), np.uint8)
    x = np.ascontiguousarray(x)
    getattr(ggml.library(), f"quantize_row_{kind}")(ggml._pointer(x), ggml._pointer(blocks), ctypes.c_int64(x.size))
    scales = blocks[:, : np.dtype(dtype).itemsize].copy().view(dtype)[:, 0].astype(np.float32)
    return scales, blocks[:, head : head + weights].view(np.int8)


def rounded_by_ggml(x, name):
    if name in OF_256:
        return ggmls_rounding(x, "q8_K", 292, 4, np.float32)
    if name in ("Q4_1", "Q5_1"):
        return ggmls_rounding(x, "q8_1", 36, 4, np.float16)
    return ggmls_rounding(x, "q8_0", 34, 2, np.float16)


def rounded_as_told(x, run):
    """The uniform grids: the definition in the text, in float64 but for the two roundings to float32."""
    x = x.reshape(-1, run)
    largest = np.abs(x).max(axis=1).astype(np.float32)
    codes = np.rint(x * np.where(largest == 0, 0, np.float32(127) / largest)[:, None])
    return largest / np.float32(127), codes.astype(np.int8)


@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
def test_activations_are_rounded_as_ggml_does(scale):
    from refquant_kernels.cpu.activations import round_q8_k

    x = (np.random.default_rng(70).standard_normal((1, 4096)) * scale).astype(np.float32)
    x[0, 256:512] = 0
    codes, scales = round_q8_k(x)
    want_scales, want_codes = rounded_by_ggml(x[0], "Q4_K")
    np.testing.assert_array_equal(codes[0], want_codes)
    np.testing.assert_array_equal(scales[0], want_scales)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("scale", [1, 1e-3, 1e4])
def test_activations_in_runs_of_32_are_rounded_as_ggml_does(name, scale):
    from refquant_kernels.cpu.activations import round_q8_0

    x = (np.random.default_rng(73).standard_normal((1, 4096)) * scale).astype(np.float32)
    x[0, 64:96] = 0
    x[0, 96:128] = np.arange(32) * 0.5  # ties
    x[0, 127] = 127
    codes, scales = round_q8_0(x)
    want_scales, want_codes = rounded_by_ggml(x[0], name)
    np.testing.assert_array_equal(codes[0], want_codes)
    np.testing.assert_array_equal(scales[0], want_scales)


def sizes(name):
    """Rows and columns."""
    if name in GRIDS:  # 576: the last group of 128 is short
        return [(1, 192), (5, 320), (37, 768)] if "192" in name else [(1, 128), (5, 576), (37, 1280)]
    return [(1, 256), (37, 1280)] if name in OF_256 else [(1, 32), (37, 32 * 9), (5, 1024)]


@pytest.mark.parametrize("name", [*OF_256, *OF_32, *GRIDS])
def test_the_product_is_that_of_the_rounded_activations(name):
    rng = np.random.default_rng(71)
    for n, k in sizes(name):
        q = rq.quantize(rng.standard_normal((n, k)).astype(np.float32), name, backend="numba")
        w, run = rq.dequantize(q), 64 if k % 128 else GRIDS.get(name)
        for m in (0, 1, 3):
            x = (rng.standard_normal((m, k)) * 0.1).astype(np.float32)
            rounded = np.zeros((m, k), np.float32)
            for i in range(m):
                scales, codes = rounded_as_told(x[i], run) if name in GRIDS else rounded_by_ggml(x[i], name)
                rounded[i] = (scales[:, None] * codes).reshape(-1)
            exact = rounded.astype(np.float64) @ w.T.astype(np.float64)
            loop = np.zeros(exact.shape, np.float32)
            for j in range(k):
                loop += rounded[:, j, None] * w[None, :, j]
            got = product(x, q)
            assert got.shape == (m, n)
            assert np.isfinite(got).all()
            magnitude = (np.abs(rounded) @ np.abs(w).T).max(initial=0)
            worst = np.abs(got - exact).max(initial=0)
            assert worst <= max(2 * np.abs(loop - exact).max(initial=0), magnitude * 2.0**-22)


@pytest.mark.parametrize("name", [*OF_256, *OF_32])
def test_the_largest_codes_and_scales_do_not_overflow(name):
    """Random bytes with finite scales, and activations that are all at the ends of their range."""
    rng = np.random.default_rng(74)
    n, k = 24, 1024
    q = rq.quantize(rng.standard_normal((n, k)).astype(np.float32), name, backend="numba")
    blocks = q.arrays["blocks"].reshape(-1, ggml.sizes(name)[1])
    noise = rng.integers(0, 256, blocks.shape, dtype=np.uint8)
    noise[: len(noise) // 2] |= np.uint8(0xEE)  # large codes and scales
    kept = {"Q2_K": [80, 81, 82, 83], "Q3_K": [108, 109], "Q6_K": [208, 209], "TQ1_0": [52, 53], "TQ2_0": [64, 65]}
    with_min = ("Q4_K", "Q5_K", "Q4_1", "Q5_1")
    kept = kept.get(name, [0, 1, 2, 3] if name in with_min else [0] if name == "MXFP4" else [0, 1])
    noise[:, kept] = blocks[:, kept]
    q = Quantized(name, q.shape, {"blocks": noise.reshape(n, -1)})
    x = np.where(rng.random((2, k)) < 0.5, np.float32(-1), np.float32(1))
    x[1] = 1
    w, got = rq.dequantize(q).astype(np.float64), product(x, q)
    rounded = ops.find_op("matmul_int8", name)(x, q)
    assert np.isfinite(w).all()
    assert np.abs(got - rounded).max() <= 2.0**-17 * np.abs(w).sum(axis=1).max()


@pytest.mark.parametrize("name", ["Q4_K", "Q4_0", "Q8_0", "IQ4_XS", "int4-g128", "int8-row"])
def test_layouts_of_activations_threads_and_nan(name):
    rng = np.random.default_rng(75)
    q = rq.quantize(rng.standard_normal((2200, 512)).astype(np.float32), name, backend="numba")
    x = rng.standard_normal((2, 3, 512)).astype(np.float32)
    want = product(x, q)
    for given in (x.astype(np.float64), np.asfortranarray(x), np.repeat(x, 2, axis=2)[..., ::2]):
        np.testing.assert_array_equal(product(given, q), want)
    assert product(x[0, 0], q).shape == (2200,)
    before = numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            np.testing.assert_array_equal(product(x, q), want)
    finally:
        numba.set_num_threads(before)
    for bad in (np.nan, np.inf, -np.inf):
        x[1, 2, 300] = bad
        y = product(x, q)
        assert np.isnan(y[1, 2]).all()
        np.testing.assert_array_equal(y[0], want[0])


def test_grids_that_have_no_such_product_say_so():
    q = rq.quantize(np.ones((2, 96), np.float32), "int4-g32")
    with pytest.raises(BadInput, match="multiples of 64"):
        product(np.ones((1, 96), np.float32), q)


def test_without_wide_registers_the_results_are_the_same():
    """Compiled for a plain x86-64 or Arm processor: no AVX, no conversion of float16, no dot product of bytes."""
    code = """
import hashlib, numpy as np, refquant as rq
from refquant import ops
from refquant_kernels.cpu import machine
rng = np.random.default_rng(72)
w, x = rng.standard_normal((9, 512)).astype("f"), rng.standard_normal((1, 512)).astype("f")
digest, products = hashlib.sha256(), []
for name in ("Q4_0", "Q5_1", "Q8_0", "Q4_K", "IQ4_NL", "TQ1_0", "TQ2_0", "int4-g128"):
    q = rq.quantize(w, name, backend="numpy" if name == "Q4_K" else "numba")
    digest.update(b"".join(a.tobytes() for a in q.arrays.values()) + rq.dequantize(q, backend="numba").tobytes())
    products.append(rq.matmul(x, q, backend="numba") - x @ rq.dequantize(q).T)
    if name != "Q4_0":
        op = ops.find_op("matmul_int8", "int" if name == "int4-g128" else name)
        products.append(op(x, q, backend="numba") - op(x, q))
print(digest.hexdigest(), max(np.abs(p).max() for p in products) < 1e-4, machine.HAS_PICK, machine.HAS_HALF)
"""

    def run(**environment):
        return subprocess.run(
            [sys.executable, "-c", code], text=True, capture_output=True, check=True, env={**os.environ, **environment}
        ).stdout.split()

    plain, own = run(NUMBA_CPU_NAME="generic"), run()
    assert plain[2:] == ["False", "False"]
    assert plain[:2] == own[:2]
    assert own[1] == "True"
