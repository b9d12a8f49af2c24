"""The registry: dispatch by backend, its errors, traffic, and matmul's accuracy."""

import numpy as np
import pytest

from refquant import ops
from refquant.errors import BackendUnavailable, BadInput, UnknownName
from refquant.methods import rtn  # noqa: F401 (registers the search)

W = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
X = np.random.default_rng(1).normal(size=(2, 3, 40)).astype(np.float32)


def test_matmul_is_as_accurate_as_a_float32_loop():
    rng = np.random.default_rng(2)
    w, x = (rng.normal(size=size).astype(np.float32) for size in ((64, 512), (8, 512)))
    q = ops.quantize(w, "int4-g128")
    decoded = ops.dequantize(q)
    exact = x.astype(np.float64) @ decoded.T.astype(np.float64)
    loop = np.zeros((8, 64), np.float32)
    for j in range(512):
        loop += x[:, j, None] * decoded[None, :, j]
    got = ops.matmul(x, q)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert np.abs(got - exact).max() <= 2 * np.abs(loop - exact).max()


def test_matmul_keeps_the_batch_axes():
    q = ops.quantize(W, "int8-row")
    assert ops.matmul(X, q).shape == (2, 3, 6)
    np.testing.assert_allclose(ops.matmul(X, q)[1, 2], X[1, 2] @ ops.dequantize(q).T, rtol=1e-5, atol=1e-5)


def test_matmul_of_another_width_is_refused():
    with pytest.raises(BadInput, match="40 inputs"):
        ops.matmul(X[..., :-1], ops.quantize(W, "int8-row"))


@pytest.mark.parametrize("w", [np.full((2, 4), np.nan), np.ones((2, 4), int), np.ones(4), np.empty((0, 4))])
def test_bad_weights_are_refused(w):
    with pytest.raises(BadInput):
        ops.quantize(w, "int4-row")


@pytest.mark.parametrize("importance", [np.ones(39), np.ones((1, 40)), 1.0])
def test_importance_of_another_shape_is_refused(importance):
    with pytest.raises(BadInput, match="one value per column"):
        ops.quantize(W, "int4-row", importance=importance)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnknownName, match="int4-g128"):
        ops.quantize(W, "int4")
    with pytest.raises(UnknownName, match="quantize, dequantize, matmul"):
        ops.traffic("invert", (6, 40), "int4-row")


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(BackendUnavailable, match="numpy, numba, cuda"):
        ops.quantize(W, "int4-row", backend="abacus")


def test_a_backend_that_cannot_be_imported_says_why(monkeypatch):
    monkeypatch.setitem(ops.BACKENDS, "test", "refquant_no_such_module")
    with pytest.raises(BackendUnavailable, match="refquant_no_such_module"):
        ops.dequantize(ops.quantize(W, "int4-row"), backend="test")


def test_an_operation_without_a_path_says_which_it_has(monkeypatch):
    monkeypatch.setitem(ops.BACKENDS, "test", None)
    with pytest.raises(BackendUnavailable, match=r"matmul of int has no 'test' path; it has \['numpy'"):
        ops.matmul(X, ops.quantize(W, "int4-row"), backend="test")


def test_a_fast_path_is_called_with_the_arguments_of_the_reference(monkeypatch):
    monkeypatch.setitem(ops.BACKENDS, "test", None)
    monkeypatch.setattr(ops.find_op("matmul", "int"), "fast", {})
    calls = []

    @ops.fast_path("matmul", "int", backend="test")
    def double(x, q):
        calls.append((x, q))
        return 2 * ops.matmul(x, q)

    q = ops.quantize(W, "int4-row")
    np.testing.assert_array_equal(ops.matmul(X, q, backend="test"), 2 * ops.matmul(X, q))
    assert calls == [(X, q)]


def test_a_format_that_nothing_can_handle_is_named(monkeypatch):
    monkeypatch.delitem(ops._PARTS, ("unpack", "int"))
    with pytest.raises(BackendUnavailable, match="nothing can unpack the format int4-row"):
        ops.dequantize(ops.quantize(W, "int4-row"))


def test_traffic_of_a_4096_by_4096_matvec():
    """int4-g128-sym: 8,388,608 bytes of codes, 262,144 of scales; x and y in float16, 8,192 each."""
    moved = ops.traffic("matmul", (4096, 4096), "int4-g128-sym", activation_bytes=2)
    assert (moved.read, moved.written) == (8_388_608 + 262_144 + 8_192, 8_192)
    assert moved.bytes == moved.read + moved.written
    assert moved.flops == 2 * 4096 * 4096


def test_traffic_of_quantize_and_dequantize_is_the_real_arrays():
    q = ops.quantize(W, "int4-g16")
    there, back = (ops.traffic(name, W.shape, "int4-g16") for name in ("quantize", "dequantize"))
    assert (there.read, there.written) == (W.nbytes, q.nbytes)
    assert (back.read, back.written) == (q.nbytes, W.nbytes)
