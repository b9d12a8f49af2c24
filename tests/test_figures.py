"""Figures: drawn from the data given, readable on any theme, quick, and without a trace in matplotlib's settings."""

import dataclasses
import io

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, Bbox
from PIL import Image

from refquant import compare, evaluate
from refquant.bandwidth import devices, weights
from refquant.figures import awq, bandwidth, canvas, gptq, rounding, start, style
from refquant.methods import awq as methods_awq
from refquant.methods import rtn


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


@pytest.mark.parametrize("colour", [(0, 0, 0, 1), (0.8, 0.4, 0, 0.5)])
@pytest.mark.parametrize("angle", [0, 30, 90, 200])
@pytest.mark.parametrize("text", ["Jagged, gyp", "$10^{-3}$"])
def test_a_stamped_text_is_the_one_that_agg_draws(text, angle, colour):
    drawn = []
    for renderer in (RendererAgg(240, 200, 100), canvas.Stamping(240, 200, 100)):
        ground = Path([[0, 0], [240, 0], [240, 80], [0, 80]])
        renderer.draw_path(renderer.new_gc(), ground, Affine2D(), (0.8, 0.9, 1))
        for x, y, alpha, clip in ((120, 100, None, None), (60, 120, 0.3, Bbox([[45, 0], [75, 200]]))):
            gc = renderer.new_gc()
            gc.set_foreground(colour, isRGBA=True)
            gc.set_alpha(alpha)
            gc.set_clip_rectangle(clip)
            renderer.draw_text(gc, x, y, text, FontProperties(size=14), angle, ismath="$" in text)
        image = np.asarray(renderer.buffer_rgba()).astype(int)
        drawn.append(np.delete(image, 75, axis=1))  # the clip's edge: Agg takes it in for images, not for texts
    plain, stamped = drawn
    assert plain[..., 2].min() < 150, "something is drawn on the ground, whose blue is 255"
    np.testing.assert_allclose(stamped, plain, atol=4)  # of 255: two glyphs may share a pixel, and each blend rounds


@style.figure_function
def test_axes_are_used_again_only_where_asked():
    with style.reuse({}):
        first, axes = style.subplots(1, 2)
        axes[0].plot([1, 2], [3, 400])
        axes[1].bar(["a", "b"], [1, 2])
        first.add_axes((0.4, 0.4, 0.1, 0.1))
        pixels(first)
        again, same = style.subplots(1, 2)
        other, _ = style.subplots(1, 2, width=6)
    assert again is first
    assert same is axes
    assert other is not first
    assert first.axes == list(axes)
    new, _ = style.subplots(1, 2)
    assert new is not first
    assert np.array_equal(pixels(first), pixels(new))


def test_grid_on_weights_states_the_error_of_a_loop():
    w = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    figure, text = rounding.grid_on_weights(w, bits=3, group_size=32, sym=False)
    lost = 0.0
    for row in w.astype(np.float64):
        for first in range(0, 256, 32):
            group = row[first : first + 32]
            scale = float(np.float16((group.max() - group.min()) / 7))
            zero = round(-group.min() / scale)
            for value in group:
                code = min(max(round(value / scale) + zero, 0), 7)
                lost += ((code - zero) * scale - value) ** 2
    assert f"squared error {100 * lost / (w.astype(np.float64) ** 2).sum():.3f} %" in text
    assert f"{3 + (16 + 3) / 32:.3f} bits a weight" in text
    assert len(figure.axes) == 2


# ---- gptq


def test_a_step_of_gptq_states_the_errors_of_the_trace():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 16)) @ rng.normal(size=(16, 16))
    w, H = rng.normal(size=(4, 16)).astype(np.float32), x.T @ x
    t = evaluate.trace(w, H, "int3-g16")
    _, text = gptq.step(t, 5)
    output = ((t.states[5] - w) @ x.T) ** 2
    assert f"Output error {100 * output.sum() / ((w @ x.T) ** 2).sum():.3f} %" in text
    assert "Step 5 of 16, column 4" in text
    assert "nothing has changed" in gptq.step(t, 0)[1]


# ---- awq


def test_the_errors_of_channels_add_up_to_the_output_error_when_inputs_are_uncorrelated():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 32)).astype(np.float32)
    x = (np.linalg.qr(rng.normal(size=(64, 32)))[0] * rng.uniform(1, 9, 32)).astype(np.float32)  # x^T x is diagonal
    s = rng.uniform(0.5, 2, 32).astype(np.float32)
    change = rtn.rounded(w * s, "int3-g16") / s - w
    expected = np.square(x @ change.T).sum(axis=1).mean()
    np.testing.assert_allclose(awq.channel_errors(w, x, "int3-g16", s).sum(), expected, rtol=1e-4)


def test_alpha_states_the_error_that_the_search_found():
    rng = np.random.default_rng(0)
    w, x = (
        rng.normal(size=(8, 32)).astype(np.float32),
        (rng.normal(size=(64, 32)) * rng.uniform(0.1, 9, 32)).astype("f4"),
    )
    found = methods_awq.search([w], x, "int3-g16")
    _, text = awq.alpha(w, x, "int3-g16", found.alpha, found)
    best = f"{100 * found.errors.min() / found.errors[0]:.1f} %"
    assert f"output error {best} of RTN's" in text
    assert f"Minimum at alpha {found.alpha:.2f}: {best}" in text


# ---- bandwidth


def test_the_roofline_states_a_step_worked_by_hand():
    device = devices.custom("card", 1000, 24, fp16=100e12, fp32=50e12)
    _, text = bandwidth.roofline(weights.store("llama-2-7b", "F16"), device, batch=1, context=1024)
    weight_bytes = 2 * 6_607_343_616  # 6,738,415,616 parameters less the embedding, which is only looked up in
    cache = 2 * 2 * 32 * 4096 * 1025  # keys and values, 2 bytes, 32 layers: 1024 read and 1 written
    vectors = 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008)) + 4096 + 32000  # into and out of each matrix
    moved = weight_bytes + cache + 2 * (vectors + 4096)  # and the embedding's row
    assert f"moves {moved / 1e9:.4g} GB" in text
    assert "ridge 100" in text
    assert "Bound by memory" in text
    assert f"at best {1e12 / moved:.0f} tokens" in text


def test_the_other_figures_are_drawn_from_their_data():
    rng = np.random.default_rng(0)
    H = np.cov(rng.normal(size=(8, 50)))
    drawn = [
        gptq.hessian(H),
        gptq.damping([0.1, 1], [0.2, 0.1], [0.1, 0.1], 0.15),
        gptq.layers(["0 q", "0 k"], {"RTN": [0.1, 0.2], "GPTQ": [0.05, 0.1]}),
        awq.salience(rng.normal(size=(50, 8)), rng.normal(size=(4, 8)).astype("f4"), "int3-g8"),
        awq.one_channel([1, 2, 4], [1, 0.3, 0.1], [1, 1.1, 2]),
        awq.clipping([1, 0.9, 0.8], np.array([[1, 0.8, 0.9], [1, 1.2, 1.5]])),
        bandwidth.measured(["32 bits", "4 bits"], [0.01, 0.002], [(0.01, 0.02, 0.03), (0.003, 0.004, 0.005)]),
        bandwidth.speedup_over([512, 1024], {"batch 1": [3, 2]}, "a title"),
        start.adapter_training([1.0, 0.5, 0.2]),
    ]
    for figure in drawn:
        image = pixels(figure)
        assert (image[..., 3] == 255).all()
        assert image[..., :3].std() > 5, "something is drawn"
        assert all(axes.get_xlabel() or axes.get_ylabel() for axes in figure.axes)


def test_every_method_of_a_table_is_drawn_at_its_bits_and_perplexity():
    numbers = [(f"m{i}", f"M{i} int4", 4.0 + i / 10, 12.0 + i, 0.1) for i in range(9)]  # more than there are colours
    line = dict.fromkeys((field.name for field in dataclasses.fields(compare.Line)), None)
    names = ("method", "label", "bits_per_weight", "perplexity", "perplexity_change_stderr")
    base = compare.Line(**line | {"method": "none", "label": "Unquantized", "perplexity": 11.5})
    lines = [base, *(compare.Line(**line | dict(zip(names, row, strict=True))) for row in numbers)]
    table = compare.Table("tiny", "llama.cpp", 512, 8, "text", "text", 0, [], {}, lines)
    axes = start.frontier(table).axes[0]
    shown = {box.get_label(): box.lines[0].get_xydata().tolist() for box in axes.containers}
    assert shown == {f"M{i}": [[4.0 + i / 10, 12.0 + i]] for i in range(9)}
    assert axes.get_lines()[0].get_ydata()[0] == 11.5
    assert axes.get_title(loc="left") == "tiny: what each bit buys"
