"""RTN against a loop over single weights in float64, and its file size."""

import numpy as np
import pytest

from refquant import ops
from refquant.errors import BadInput, UnknownName
from refquant.grids import IntGrid, as_grid
from refquant.methods import rtn

W = np.random.default_rng(0).normal(size=(7, 100)).astype(np.float32)


def one_by_one(w, bits, g, sym):
    """Scale in float16, everything else in Python's floats: (codes, decoded)."""
    codes, decoded = np.empty(w.shape, np.uint8), np.empty(w.shape)
    for i in range(len(w)):
        for start in range(0, w.shape[1], g):
            group = [float(v) for v in w[i, start : start + g]]
            low, high = min(0.0, *group), max(0.0, *group)
            if sym:
                high = max(-low, high)
                low = -high
            scale = float(np.float16(np.float32(high - low) / np.float32(2**bits - 1)))
            zero = 2 ** (bits - 1) if sym else round(-low / scale)
            for j, v in enumerate(group, start):
                code = min(max(round(v / scale) + zero, 0), 2**bits - 1)
                codes[i, j], decoded[i, j] = code, (code - zero) * scale
    return codes, decoded


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("g", [32, 7, 100])  # the last group of 32 and of 7 is short
@pytest.mark.parametrize("sym", [False, True])
def test_rtn_is_the_loop_over_single_weights(bits, g, sym):
    q = rtn.quantize(W, IntGrid(bits, g, sym))
    codes, decoded = one_by_one(W, bits, g, sym)
    np.testing.assert_array_equal(ops.unpack(q)["codes"], codes)
    np.testing.assert_allclose(ops.dequantize(q), decoded, rtol=1e-6)


@pytest.mark.parametrize("name", ["int4-g32", "int3-g7-sym", "int8-row", "int2-g100"])
def test_the_three_ways_to_rtn_agree(name):
    q = rtn.quantize(W, name)
    other = ops.quantize(W, name)
    assert q.arrays.keys() == other.arrays.keys()
    for array in q.arrays:
        np.testing.assert_array_equal(q.arrays[array], other.arrays[array])
    np.testing.assert_array_equal(rtn.rounded(W, name), ops.dequantize(q))


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-sym", "int8-row"])
def test_the_error_is_at_most_half_a_step(name):
    """Of a group's own step; where the zero-point was rounded or the grid is symmetric, a full step at the ends."""
    grid = as_grid(name)
    scales, _ = grid.fit_groups(W)
    error = np.abs(rtn.rounded(W, name) - W) / scales[:, grid.group_index(100)]
    assert np.mean(error <= 0.5001) > 0.97
    assert error.max() < 1.02


def test_case_10_11_row_and_ragged_groups():
    for sym in (False, True):
        whole, hundred = (rtn.quantize(W, IntGrid(4, size, sym)) for size in (-1, 100))
        for array in whole.arrays:
            np.testing.assert_array_equal(whole.arrays[array], hundred.arrays[array])
    assert rtn.quantize(W, "int4-g64").arrays["scales"].shape == (7, 2)
    tail = rtn.quantize(W[:, 64:], "int4-row")
    np.testing.assert_array_equal(ops.dequantize(rtn.quantize(W, "int4-g64"))[:, 64:], ops.dequantize(tail))


@pytest.mark.parametrize(
    ("w", "error"),
    [
        (np.full((2, 4), np.nan), BadInput),
        (np.empty((0, 4)), BadInput),
        (np.ones((2, 4), int), BadInput),
        (np.full((2, 4), 1e7), BadInput),
    ],
)
def test_bad_weights(w, error):
    with pytest.raises(error):
        rtn.quantize(w, "int4-row")


def test_unknown_grid():
    with pytest.raises(UnknownName, match="int4-g128"):
        rtn.quantize(W, "int4-g128-asym")
