"""A layer to quantize with GPTQ, and how a backend's result is compared with the reference's."""

import numpy as np

import refquant as rq
from refquant.methods import gptq


def layer(n, k, tokens, seed=60):
    """Inputs that are correlated and of unequal size, one column that nothing reaches."""
    rng = np.random.default_rng(seed)
    mix = np.eye(k) + 0.3 * rng.standard_normal((k, k)) / np.sqrt(k)
    x = (rng.standard_normal((tokens, k)) @ mix * np.exp(rng.standard_normal(k))).astype(np.float32)
    x[:, k // 3] = 0
    return (rng.standard_normal((n, k)) * 0.02).astype(np.float32), gptq.hessian(x)


def assert_same_but_for_near_ties(got, want):
    """A near-tie changes the rest of its row, so rows are counted; the output error must not suffer."""
    a, b = rq.dequantize(got.quantized), rq.dequantize(want.quantized)
    assert np.isfinite(a).all()
    assert (a != b).any(axis=1).mean() <= 0.05
    assert got.losses.sum() <= 1.001 * want.losses.sum()
    assert got.quantized.arrays.keys() == want.quantized.arrays.keys()
    np.testing.assert_allclose(got.losses.sum(), want.losses.sum(), rtol=1e-3)
    np.testing.assert_array_equal(got.dead, want.dead)
    assert got.damp == want.damp
