"""Products with activations of 8 bits, against their own definition; and the plain path of machines without AVX-512."""

import ctypes
import os
import subprocess
import sys

import ggml
import numpy as np
import pytest

import refquant as rq
from refquant import ops

NAMES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def product(x, q):
    ops.load_backend("numba")
    return ops.find_op("matmul_int8", q.format)(x, q, backend="numba")


def q8_k(x):
    """ggml's rounding of activations: scales [blocks], codes [blocks, 256]."""
    blocks = np.empty((x.size // 256, 292), np.uint8)
    x = np.ascontiguousarray(x)
    ggml.library().quantize_row_q8_K_ref(ggml._pointer(x), ggml._pointer(blocks), ctypes.c_int64(x.size))
    return blocks[:, :4].copy().view(np.float32)[:, 0], blocks[:, 4:260].view(np.int8)


@pytest.mark.parametrize("scale", [1, 1e-30, 1e30])
def test_activations_are_rounded_as_ggml_does(scale):
    from refquant_kernels.cpu.matmul_int8 import round_activations

    x = (np.random.default_rng(70).standard_normal((1, 4096)) * scale).astype(np.float32)
    x[0, 256:512] = 0
    codes, scales = round_activations(x)
    want_scales, want_codes = q8_k(x)
    np.testing.assert_array_equal(codes[0], want_codes)
    np.testing.assert_array_equal(scales[0], want_scales)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (37, 1280)])
def test_the_product_is_that_of_the_rounded_activations(name, n, k):
    rng = np.random.default_rng(71)
    q = rq.quantize(rng.standard_normal((n, k)).astype(np.float32), name, backend="numba")
    w = rq.dequantize(q)
    for m in (0, 1, 3):
        x = rng.standard_normal((m, k)).astype(np.float32)
        rounded = np.zeros((m, k), np.float32)
        for i in range(m):
            scales, codes = q8_k(x[i])
            rounded[i] = (scales[:, None] * codes).reshape(-1)
        exact = rounded.astype(np.float64) @ w.T.astype(np.float64)
        loop = np.zeros(exact.shape, np.float32)
        for j in range(k):
            loop += rounded[:, j, None] * w[None, :, j]
        got = product(x, q)
        assert got.shape == (m, n)
        magnitude = (np.abs(rounded) @ np.abs(w).T).max(initial=0)
        worst = np.abs(got - exact).max(initial=0)
        assert worst <= max(2 * np.abs(loop - exact).max(initial=0), magnitude * 2.0**-22)


def test_without_wide_registers_the_results_are_the_same():
    """Compiled for a plain x86-64 or Arm processor: no AVX, no conversion of float16, no dot product of bytes."""
    code = """
import hashlib, numpy as np, refquant as rq
from refquant import ops
from refquant_kernels.cpu import machine
rng = np.random.default_rng(72)
w, x = rng.standard_normal((9, 512)).astype("f"), rng.standard_normal((1, 512)).astype("f")
digest, products = hashlib.sha256(), []
for name in ("Q4_0", "Q4_K", "IQ4_NL", "int4-g128"):
    q = rq.quantize(w, name, backend="numpy" if name == "Q4_K" else "numba")
    digest.update(b"".join(a.tobytes() for a in q.arrays.values()) + rq.dequantize(q, backend="numba").tobytes())
    products.append(rq.matmul(x, q, backend="numba") - x @ rq.dequantize(q).T)
    if name == "Q4_K":
        op = ops.find_op("matmul_int8", name)
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
