"""Products of whole matrices in Numba: within the rounding of float64's; the same on any number of threads."""

import numba
import numpy as np
import pytest
from refquant_kernels.cpu import gemm
from refquant_kernels.cpu.compile import aligned_empty

SHAPES = [(1, 1, 1), (12, 384, 32), (13, 385, 33), (5, 7, 16), (5, 7, 17), (193, 769, 70), (400, 40, 9)]


@pytest.fixture(params=[True, False], ids=["tiles", "blas"])
def tiles(request, monkeypatch):
    monkeypatch.setattr(gemm, "HAS_TILES", request.param)


def bound(A, B):
    """What the rounding of every step of a plain loop may add up to: k eps |A| |B|."""
    return (A.shape[1] + 2) * np.finfo(A.dtype).eps * (np.abs(A) @ np.abs(B)).astype(np.float64)


def exact(A, B):
    return A.astype(np.longdouble) @ B.astype(np.longdouble)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_a_product_is_added(m, k, n, dtype, tiles, monkeypatch):
    monkeypatch.setattr(gemm, "WORTH", 0)  # always on threads, if threads it is
    rng = np.random.default_rng(m * k * n)
    A, B = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    start = rng.standard_normal((m, n)).astype(dtype)
    for sign, packed in ((1, gemm.pack(B, dtype)), (-1, gemm.pack_transposed(np.ascontiguousarray(B.T)))):
        for threads in (True, False):
            out = start.copy()
            gemm.add_product(out, A, packed, sign, threads)
            slack = bound(A, B) + 2 * np.finfo(dtype).eps * np.abs(start)
            assert (np.abs(out - (start + sign * exact(A, B))) <= slack).all()


def test_rows_may_lie_apart_and_matrices_be_empty(tiles):
    rng = np.random.default_rng(3)
    A, B, out = rng.standard_normal((40, 50)), rng.standard_normal((60, 70)), np.zeros((40, 90))
    gemm.add_product(out[2:30, 5:35], A[2:30, 10:40], gemm.pack(B[:30, ::-1][:, :30], np.float64))
    want = np.zeros((40, 90))
    want[2:30, 5:35] = A[2:30, 10:40] @ B[:30, ::-1][:, :30]
    np.testing.assert_allclose(out, want, rtol=0, atol=1e-12)
    for m, k, n in ((0, 3, 4), (3, 0, 4), (3, 4, 0)):
        out = np.ones((m, n))
        gemm.add_product(out, np.ones((m, k)), gemm.pack(np.ones((k, n)), np.float64))
        np.testing.assert_array_equal(out, 1)


def test_nothing_that_is_not_finite_is_hidden_or_spread(tiles):
    """Rows and columns that fill tiles up are zeros, and zero times infinity is not a number."""
    A, B, out = np.ones((13, 20), np.float32), np.ones((20, 17), np.float32), np.zeros((13, 17), np.float32)
    A[3, 4], B[7, 16] = np.nan, np.inf
    gemm.add_product(out, A, gemm.pack(B, np.float32))
    want = A @ B
    assert np.isnan(want[3]).all()
    assert np.isinf(want[:3, 16]).all()
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 32, 5), (16, 100, 12), (17, 400, 250), (600, 64, 30)])
def test_weights_are_decoded_by_panels(m, k, n, tiles, monkeypatch):
    monkeypatch.setattr(gemm, "PANEL", 30 * k)  # with BLAS
    rng = np.random.default_rng(m)
    tokens, w = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((n, k)).astype(np.float32)
    seen, out = np.zeros(n, int), np.empty((m, n), np.float32)

    def decode(first, last, panel):
        seen[first:last] += 1
        panel[: (last - first) * k] = w[first:last].reshape(-1)

    gemm.by_panels(tokens, n, decode, out)
    assert (np.abs(out - exact(tokens, w.T)) <= bound(tokens, w.T)).all()
    np.testing.assert_array_equal(seen, -(-m // gemm.WIDE) if gemm.HAS_TILES else 1)


def test_the_number_of_threads_does_not_show_in_prefill(monkeypatch):
    monkeypatch.setattr(gemm, "WORTH", 0)
    monkeypatch.setattr(gemm, "WORK", 1)  # every twelve rows are a piece
    rng, before, results = np.random.default_rng(6), numba.get_num_threads(), []
    tokens, w = rng.standard_normal((20, 64)).astype(np.float32), rng.standard_normal((500, 64)).astype(np.float32)

    def decode(first, last, panel):
        panel[: (last - first) * 64] = w[first:last].reshape(-1)

    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            out = np.full((20, 500), np.nan, np.float32)
            gemm.by_panels(tokens, 500, decode, out)
            results.append(out)
    finally:
        numba.set_num_threads(before)
    assert (np.abs(results[0] - exact(tokens, w.T)) <= bound(tokens, w.T)).all()
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_the_number_of_threads_does_not_show():
    rng, before, results = np.random.default_rng(5), numba.get_num_threads(), []
    A, B = rng.standard_normal((700, 600)).astype(np.float32), rng.standard_normal((600, 90)).astype(np.float32)
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            out = np.zeros((700, 90), np.float32)
            gemm.add_product(out, A, gemm.pack(B, np.float32))
            results.append(out)
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_a_tile_adds_to_what_is_there_and_touches_nothing_else():
    a, b, c = (aligned_empty(shape) for shape in ((gemm.ROWS, gemm.APART), (5, 32), (gemm.ROWS + 1, 48)))
    a[:], b[:], c[:] = 2, 3, 1

    tile = gemm.tile

    @numba.njit
    def one(a, b, c):
        tile(a, 0, b, 0, 5, c, 0, 48)

    one(a.reshape(-1), b.reshape(-1), c.reshape(-1))
    np.testing.assert_array_equal(c[: gemm.ROWS, :32], 31)
    np.testing.assert_array_equal(c[: gemm.ROWS, 32:], 1)
    np.testing.assert_array_equal(c[gemm.ROWS :], 1)
