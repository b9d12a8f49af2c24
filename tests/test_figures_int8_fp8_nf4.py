"""Notebook 06's figures and widgets, without a browser; against ml_dtypes and loops."""

import re

import ml_dtypes
import numpy as np
import pytest

from refquant.figures import int8_fp8_nf4 as figures
from refquant.widgets import int8_fp8_nf4 as widgets

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(32, 128)).astype(np.float32), RNG.normal(size=(16, 128)).astype(np.float32)
TYPES = {"E4M3": ml_dtypes.float8_e4m3fn, "E5M2": ml_dtypes.float8_e5m2, "E2M1": ml_dtypes.float4_e2m1fn}


def test_decomposition_states_the_error_of_a_loop_without_outliers_apart():
    _, text = figures.decomposition(X, W, threshold=0, times=1)
    lost = size = 0.0
    x16, w16 = X.astype(np.float16).astype(np.float64), W.astype(np.float16).astype(np.float64)
    for token, full in zip(x16, X.astype(np.float64), strict=True):
        for row, whole in zip(w16, W.astype(np.float64), strict=True):
            sx, sw = np.abs(token).max(), np.abs(row).max()
            got = (np.rint(token / sx * 127) @ np.rint(row / sw * 127)) * sx * sw / 127**2
            lost, size = lost + (got - full @ whole) ** 2, size + (full @ whole) ** 2
    assert float(re.search(r"output error ([\d.e-]+),", text)[1]) == pytest.approx(lost / size, rel=0.02)


def test_larger_outliers_are_set_apart():
    x = figures.larger(X, 3, 10)
    assert (np.abs(x).max(axis=0) > 6).sum() == 3
    assert "3 of 128 columns set apart" in figures.decomposition(X, W, threshold=6, times=10)[1]
    assert "0 of 128 columns set apart" in figures.decomposition(X, W, threshold=0, times=10)[1]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("x", [0.3, 1.23, 2.6, 5.9, 1e-9])
def test_a_cast_gives_the_code_and_the_value_of_ml_dtypes(name, x):
    want = np.float32(x).astype(TYPES[name])
    text = figures.cast(name, x, "nan")[1]
    fields, value = re.search(r"becomes ([01 ]+) = ([^,. ]*(?:\.\d+)?)", text).groups()
    bits = 4 if name == "E2M1" else 8
    assert fields.replace(" ", "") == f"{int(want.view(np.uint8)) & (1 << bits) - 1:0{bits}b}"
    assert float(value) == pytest.approx(float(want))


def test_relative_errors_are_those_of_the_fraction_bits():
    text = figures.relative_errors()[1]
    errors = {name: float(value) for name, value in re.findall(r"(\w+) ([\d.]+) %", text)}
    assert errors["E4M3"] == pytest.approx(100 / 17, abs=0.2)  # halfway in steps of 1/8, relative: 1/16 of 17/16
    assert errors["E5M2"] == pytest.approx(100 / 9, abs=0.2)


def test_the_levels_of_nf4_are_counted():
    figure, text = figures.normal_levels(W, 64)
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert sum(heights) == pytest.approx(100)
    assert heights[15] + heights[0] >= 100 / 64  # the largest of each block is at an end
    assert "4.500 bits" in text


def test_block_levels_states_the_squared_error_of_e2m1():
    _, text = figures.block_levels(W, "mxfp4", 1)
    lost = size = 0.0
    for start in (64, 96):
        block = W[0, start : start + 32]
        scale = 2.0 ** (np.floor(np.log2(np.abs(block).max())) - 2)
        back = np.clip(block / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float64) * scale
        lost, size = lost + np.square(back - block).sum(), size + np.square(block.astype(np.float64)).sum()
    assert f"{100 * lost / size:.3f} %" in text
    assert "4.250 bits" in text


def test_the_widgets_draw_what_the_figures_draw():
    view = widgets.decomposition(X, W)
    view.controls["threshold"].value = 2.5
    view.controls["times"].value = 5
    assert figures.decomposition(X, W, 2.5, 5)[1] in view.line.value
    view = widgets.block_levels(W)
    view.controls["name"].value = "nvfp4"
    assert figures.block_levels(W, "nvfp4", 0)[1] in view.line.value
