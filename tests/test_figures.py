"""Figures: drawn from the data given, readable on any theme, quick, and without a trace in matplotlib's settings."""

import io

import matplotlib
import numpy as np
from PIL import Image

from refquant.figures import rounding, style


def pixels(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(style.png(figure))).convert("RGBA"))


def test_the_look_ends_with_its_block():
    before = dict(matplotlib.rcParams)
    with style.look():
        assert matplotlib.rcParams["axes.spines.top"] is False
    assert dict(matplotlib.rcParams) == before


def test_a_figure_is_opaque_white_and_as_large_as_asked():
    figure, _ = style.subplots(1, 2, width=7, height=3)
    image = pixels(figure)
    assert image.shape == (3 * style.DPI, 7 * style.DPI, 4)
    assert (image[..., 3] == 255).all()
    assert (image[0, 0] == 255).all()


def test_margins_are_inches():
    _, axes = style.subplots(1, 2, width=8, height=4, left=1, right=0.5, bottom=0.5, top=0.25, across=0.75)
    left, right = (a.get_position() for a in axes)
    np.testing.assert_allclose([left.x0 * 8, left.y0 * 4, right.x1 * 8, left.y1 * 4], [1, 0.5, 7.5, 3.75])
    np.testing.assert_allclose((right.x0 - left.x1) * 8, 0.75)


def test_an_img_holds_its_text_and_its_picture():
    figure, _ = style.subplots()
    assert 'alt="1 &lt; 2"' in style.img(figure, "1 < 2")


def test_grid_on_weights_states_the_error_of_a_loop():
    w = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    figure, text = rounding.grid_on_weights(w, bits=3, group_size=32, sym=False)
    lost = 0.0
    for row in w.astype(np.float64):
        for start in range(0, 256, 32):
            group = row[start : start + 32]
            scale = float(np.float16((group.max() - group.min()) / 7))
            zero = round(-group.min() / scale)
            for value in group:
                code = min(max(round(value / scale) + zero, 0), 7)
                lost += ((code - zero) * scale - value) ** 2
    assert f"squared error {100 * lost / (w.astype(np.float64) ** 2).sum():.3f} %" in text
    assert f"{3 + (16 + 3) / 32:.3f} bits a weight" in text
    assert len(figure.axes) == 2
