"""Notebook 06 in the browser."""

import pytest
from lab import questions_of

from refquant import models
from refquant.figures import int8_fp8_nf4 as figures
from refquant.models import calibrate, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def model():
    return models.load("tiny")


@pytest.fixture(scope="module")
def w(model):
    return walk.weight_array(walk.linears(walk.blocks(model[0])[5])["self_attn.q_proj"])


def test_the_decomposition(opened, model, w):
    ids = models.data.calibration("tiny", model[1], windows=1).ids
    x = calibrate.layer_inputs(model[0], ids, ("x",))[5, "self_attn.q_proj"].x[:256]
    view = opened.explorer(0)
    opened.shows(view, figures.decomposition(x, w, 6, 1))
    opened.slide("outliers times", 4, view)
    assert opened.shown("outliers times", view) == "20"
    opened.shows(view, figures.decomposition(x, w, 6, 20))
    opened.slide("threshold", -12, view)
    assert opened.shown("threshold", view) == "0.0"
    opened.shows(view, figures.decomposition(x, w, 0, 20))


def test_a_cast(opened):
    view = opened.explorer(1)
    opened.shows(view, figures.cast("E4M3", 2**0.3))
    opened.drag("log2 of the number", 1.0, view)
    assert opened.shown("log2 of the number", view) == "18.0"
    assert opened.text(view) == "E4M3: 262144 becomes 0 1111 110 = 448, 99.83 % off (saturated)."
    opened.choose("beyond the largest", "nan", view)
    assert opened.text(view) == "E4M3: 262144 becomes 0 1111 111 = nan."
    opened.choose("format", "E5M2", view)
    assert opened.text(view) == "E5M2: 262144 becomes 0 11111 00 = inf."


def test_the_levels_of_nf4(opened, model):
    view = opened.explorer(2)
    down = walk.weight_array(walk.linears(walk.blocks(model[0])[3])["mlp.down_proj"])
    opened.slide("block", 2, view)
    opened.shows(view, figures.normal_levels(down, 256))


def test_the_levels_of_each_grid(opened, w):
    view = opened.explorer(3)
    for name in ("mxfp4", "nvfp4", "int4-g64-sym"):
        opened.choose("grid", name, view)
        opened.shows(view, figures.block_levels(w, name, 0))
    opened.slide("64 weights, number", 3, view)
    opened.shows(view, figures.block_levels(w, "int4-g64-sym", 3))


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("06_int8_fp8_nf4"))
