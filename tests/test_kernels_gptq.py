"""GPTQ in Numba: the reference's codes, but where the last place of the factor decides; its losses."""

import numba
import numpy as np
import pytest
from gptq_cases import assert_same_but_for_near_ties, layer

import refquant as rq
from refquant.errors import NotPositiveDefinite
from refquant.methods import gptq

OPTIONS = [
    {},
    {"act_order": True},
    {"act_order": True, "static_groups": True},
    {"group_params": "reference", "block_size": 50},
    {"block_size": 1},
    {"block_size": 1000},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", ["int4-g128", "int4-g32", "int3-row-sym", "int8-g100"])
@pytest.mark.parametrize(("n", "k"), [(1, 96), (5, 130), (100, 384)])
def test_codes_are_the_references(n, k, grid, options):
    w, H = layer(n, k, 2 * k)
    before = w.copy(), H.copy()
    got = gptq.quantize(w, H, grid, backend="numba", **options)
    assert_same_but_for_near_ties(got, gptq.quantize(w, H, grid, **options))
    np.testing.assert_array_equal(w, before[0])
    np.testing.assert_array_equal(H, before[1])


@pytest.mark.parametrize(
    ("grid", "options"), [("int4-g128", {}), ("int4-g100", {"act_order": True}), ("int4-g700", {"block_size": 50})]
)
def test_more_columns_than_one_product_is_wide(grid, options):
    """And groups that reach over the end of it."""
    w, H = layer(24, 1100, 2200)
    got = gptq.quantize(w, H, grid, backend="numba", **options)
    assert_same_but_for_near_ties(got, gptq.quantize(w, H, grid, **options))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_where_blas_multiplies(options, monkeypatch):
    """Because there are no registers of 512 bits."""
    from refquant_kernels.cpu import gemm
    from refquant_kernels.cpu import gptq as fast

    monkeypatch.setattr(gemm, "HAS_TILES", False)
    monkeypatch.setattr(fast, "HAS_TILES", False)
    w, H = layer(40, 384, 800)
    got = gptq.quantize(w, H, "int4-g128", backend="numba", **options)
    assert_same_but_for_near_ties(got, gptq.quantize(w, H, "int4-g128", **options))


def test_more_rows_than_are_taken_at_once():
    w, H = layer(700, 128, 300)
    got = gptq.quantize(w, H, "int4-g64", backend="numba")
    assert_same_but_for_near_ties(got, gptq.quantize(w, H, "int4-g64"))


def test_one_column():
    w = np.array([[0.3], [-0.7]], np.float32)
    got, want = (gptq.quantize(w, np.ones((1, 1), np.float32), "int4-row", backend=b) for b in ("numba", "numpy"))
    assert_same_but_for_near_ties(got, want)


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_hessian_of_few_tokens(tokens):
    """Singular but for its damping."""
    w, H = layer(16, 192, tokens)
    got, want = (gptq.quantize(w, H, "int4-g64", backend=b) for b in ("numba", "numpy"))
    assert_same_but_for_near_ties(got, want)


def test_a_hessian_that_cannot_be_factored_is_damped_like_the_references():
    hilbert = 1 / (np.arange(13)[:, None] + np.arange(13) + 1.0) - 1e-9 * np.eye(13)  # its least eigenvalue: -1e-9
    w = np.random.default_rng(61).standard_normal((4, 13)).astype(np.float32)
    got, want = (gptq.quantize(w, hilbert, "int4-row", damp=0.0, backend=b) for b in ("numba", "numpy"))
    assert got.damp == want.damp > 0
    assert_same_but_for_near_ties(got, want)
    with pytest.raises(NotPositiveDefinite):
        gptq.quantize(w, -hilbert, "int4-row", backend="numba")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_hessian_too_near_singular_for_the_short_way(options, monkeypatch):
    """The reference's factor, in the loop of this one."""
    from refquant_kernels.cpu import gptq as fast

    w, H = layer(40, 256, 512)
    monkeypatch.setattr(fast, "SPREAD", 0)
    got = gptq.quantize(w, H, "int4-g128", backend="numba", **options)
    assert_same_but_for_near_ties(got, gptq.quantize(w, H, "int4-g128", **options))


def test_the_factor():
    """With R upper triangular, R R^T is the damped Hessian, and its inverse the reference's factor, in float64."""
    from refquant_kernels.cpu.gptq import factor, invert_upper

    _, H = layer(1, 300, 600)
    H = H.astype(np.float64) + np.eye(300)
    R, _, damp = factor(H, 0.01)
    R = np.triu(R(slice(0, 300), slice(0, 300)))
    damped = H + damp * np.diag(H).mean() * np.eye(300)
    np.testing.assert_allclose(R @ R.T, damped, rtol=0, atol=1e-12 * damped.max())
    U = R.copy()
    invert_upper(U)
    np.testing.assert_array_equal(U, np.triu(U))
    np.testing.assert_allclose(U, gptq.inverse_factor(H, 0.01)[0], rtol=0, atol=1e-12 * np.abs(U).max())


@pytest.mark.parametrize("k", [1, 255, 256, 600, 1100])
def test_the_factorization_by_panels(k):
    from refquant_kernels.cpu.gptq import cholesky

    _, H = layer(1, k, 2 * k)
    A = H.astype(np.float64) + np.eye(k)
    want = np.linalg.cholesky(A)
    L = cholesky(A)
    got = np.tril(L.block(slice(0, k), slice(0, k)))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max())
    rows, columns = slice(k // 3, k // 2), slice(k // 2, k)
    np.testing.assert_array_equal(L.turned(rows, columns), got[::-1, ::-1][rows, columns])
    A[-1, -1] = -1
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(A)


def test_the_number_of_threads_does_not_show():
    before = numba.get_num_threads()
    w, H = layer(300, 256, 512)
    results = []
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            results.append(rq.dequantize(gptq.quantize(w, H, "int4-g64", backend="numba").quantized))
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
