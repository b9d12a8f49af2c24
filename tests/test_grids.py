"""The integer grids against exhaustive search over their levels, and the published rule for scale and zero-point."""

import numpy as np
import pytest

from refquant.errors import BadInput, UnknownName
from refquant.grids import NAMED, IntGrid, as_grid, check_inputs, check_weights, round_half_even

GRIDS = [IntGrid(bits, 8, sym, dtype) for bits in range(1, 9) for sym in (0, 1) for dtype in ("float16", "float32")]


def weights(n=50, g=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, g)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}-{grid.scale_dtype}")
def test_encode_finds_the_nearest_level(grid):
    w = 1.5 * weights()  # some lie beyond the grid fitted below
    scale, zero = (each[:, None] for each in grid.fit(w / 1.5))
    levels = (np.arange(2**grid.bits) - zero.astype(np.float64)) * scale.astype(np.float64)  # [n, levels]
    least = np.abs(w[:, :, None] - levels[:, None]).min(axis=2)
    decoded = grid.decode(grid.encode(w, scale, zero), scale, zero)
    np.testing.assert_allclose(np.abs(w - decoded), least, rtol=0, atol=2e-7 * np.abs(w).max())


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}-{grid.scale_dtype}")
def test_decoding_and_encoding_again_changes_no_code(grid):
    scale, zero = (each[:, None] for each in grid.fit(weights()))
    every = np.broadcast_to(np.arange(2**grid.bits, dtype=np.uint8), (50, 2**grid.bits))
    np.testing.assert_array_equal(grid.encode(grid.decode(every, scale, zero), scale, zero), every)


def test_asymmetric_scale_and_zero_worked_by_hand():
    grid = IntGrid(4, None, scale_dtype="float32")
    w = np.array([[-1, 0.25, 2], [1, 2, 3], [-3, -2, -1.5]], np.float32)
    scale, zero = grid.fit(w)
    np.testing.assert_array_equal(scale, np.float32([3 / 15, 3 / 15, 3 / 15]))  # the range always holds 0
    assert zero.tolist() == [5, 0, 15]
    assert grid.encode(w, scale[:, None], zero[:, None]).tolist() == [[0, 6, 15], [5, 10, 15], [0, 5, 7]]  # 7.5 + 15


def test_symmetric_scale_worked_by_hand():
    grid = IntGrid(4, None, sym=True, scale_dtype="float32")
    w = np.array([[-7.5, 1, 2], [3, 1, 7.5]], np.float32)
    scale, zero = grid.fit(w)
    assert scale.tolist() == [1, 1]  # 2 * 7.5 / 15, also without a negative weight
    assert zero.tolist() == [8, 8]
    assert grid.encode(w, scale[:, None], zero[:, None]).tolist() == [[0, 9, 10], [11, 9, 15]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_case_13_the_middle_code_of_a_symmetric_grid_is_zero(bits):
    grid = IntGrid(bits, None, sym=True)
    scale, zero = grid.fit(weights())
    middle = np.full(50, 2 ** (bits - 1), np.uint8)
    assert not grid.decode(middle, scale, zero).any()
    ends = grid.decode(np.array([[0, 2**bits - 1]]), scale[:, None], zero[:, None]) / scale[:, None]
    np.testing.assert_array_equal(ends, np.broadcast_to([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], ends.shape))


def test_ties_go_to_the_even_multiple_of_the_scale():
    assert round_half_even(np.array([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]
    grid = IntGrid(4, None)
    assert grid.encode(np.float32([0.5, 1.5, 2.5]), np.float32(1), np.float32(3)).tolist() == [3, 5, 5]


@pytest.mark.parametrize("group_size", [1, 3, 7, 8, 20, 21, None])
@pytest.mark.parametrize("sym", [False, True])
def test_groups_are_fitted_one_by_one_and_the_last_may_be_short(group_size, sym):
    grid, w = IntGrid(4, group_size, sym), weights(g=20)
    starts = list(range(0, 20, group_size or 20))
    assert grid.starts(20).tolist() == starts
    assert grid.group_index(20).tolist() == [j // (group_size or 20) for j in range(20)]
    assert grid.group_index(20).dtype == np.int32
    scales, zeros = grid.fit_groups(w)
    assert scales.shape == zeros.shape == (50, len(starts))
    for g, start in enumerate(starts):
        scale, zero = grid.fit(w[:, start : start + (group_size or 20)])
        np.testing.assert_array_equal(scales[:, g], scale)
        np.testing.assert_array_equal(zeros[:, g], zero)


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [0, 1e-20, -1e-45, 6e-8, 0.3, -0.3, 1e4])
def test_case_20_a_constant_group_is_finite_and_near(value, sym, scale_dtype):
    grid, w = IntGrid(4, None, sym, scale_dtype), np.full((2, 8), value, np.float32)
    scale, zero = (each[:, None] for each in grid.fit(w))
    decoded = grid.decode(grid.encode(w, scale, zero), scale, zero)
    assert (scale > 0).all()
    assert np.isfinite(decoded).all()
    assert (np.abs(decoded - w) <= np.maximum(0.51 * scale, abs(value) / 1000)).all()


def test_scales_are_kept_as_they_will_be_stored():
    w = weights()
    narrow, wide = (IntGrid(4, None, scale_dtype=dtype).fit(w)[0] for dtype in ("float16", "float32"))
    assert narrow.dtype == wide.dtype == np.float32
    np.testing.assert_array_equal(narrow, wide.astype(np.float16))
    assert (narrow != wide).any()


def test_a_scale_beyond_float16_is_refused_with_the_way_out():
    w = np.array([[-1e6, 1e6]], np.float32)
    with pytest.raises(BadInput, match="scale_dtype='float32'"):
        IntGrid(4).fit(w)
    IntGrid(4, scale_dtype="float32").fit(w)


@pytest.mark.parametrize("name", [*NAMED, "int5-g7", "int1-row", "int4-g9999999"])
def test_names_round_trip(name):
    assert as_grid(name).name == name


def test_minus_one_and_none_are_the_whole_row():
    assert IntGrid(4, -1) == IntGrid(4) == as_grid("int4-row")


def test_a_grid_passes_through():
    grid = IntGrid(3, 5)
    assert as_grid(grid) is grid


@pytest.mark.parametrize(
    "name", ["int4", "int9-row", "int0-row", "int4-g0", "int4-g-1", "INT4-g128", "int4-g128-sym ", "", 4, None]
)
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(UnknownName, match="int4-g128, int4-g128-sym"):
        as_grid(name)


@pytest.mark.parametrize(
    "arguments",
    [(0,), (9,), (4.0,), (4, 0), (4, -2), (4, 1.5), (4, 8, False, "bfloat16")],
)
def test_a_grid_that_cannot_be_is_refused(arguments):
    with pytest.raises(BadInput):
        IntGrid(*arguments)


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.ones(3), "matrix"),
        (np.ones((2, 0)), "empty axis"),
        (np.ones((2, 2, 2)), "matrix"),
        (np.ones((2, 3), np.int8), "int8"),
        (np.array([[1, 2], [np.nan, np.inf]]), r"2 of 4 values.*\[1, 0\]"),
        (np.array([[1e300]]), "float32"),
    ],
)
def test_weights_that_no_grid_can_hold_are_refused(w, message):
    with pytest.raises(BadInput, match=message):
        check_weights(w)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_become_float32(dtype):
    w = np.arange(6, dtype=dtype).reshape(2, 3)
    checked = check_weights(w)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, w)


def test_inputs_lose_their_batch_axes():
    x = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    checked = check_inputs(x, 4)
    assert checked.shape == (6, 4)
    assert checked.dtype == np.float32


@pytest.mark.parametrize(
    "x", [np.ones((2, 3)), np.ones(4), np.empty((0, 4)), np.ones((2, 4), int), np.full((1, 4), np.nan)]
)
def test_inputs_that_calibrate_nothing_are_refused(x):
    with pytest.raises(BadInput, match="calibration"):
        check_inputs(x, 4)
