"""Notebook 04 in the browser."""

import pytest
from lab import questions_of

from refquant import models
from refquant.figures import awq as figures
from refquant.methods import awq
from refquant.models import calibrate, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def layer():
    """The notebook's layer: weights and inputs."""
    model, tokenizer = models.load("tiny")
    ids = models.data.calibration("tiny", tokenizer, windows=2).ids
    name = "self_attn.q_proj"
    x = calibrate.layer_inputs(model, ids, ("x",))[1, name].x[:512]
    return walk.weight_array(walk.linears(walk.blocks(model)[1])[name]), x


def test_alpha_shows_the_error_of_the_search(opened, layer):
    view = opened.explorer(0)
    w, x = layer

    def expected(grid, alpha):
        return figures.alpha(w, x, grid, alpha, awq.search([w], x, grid))

    opened.shows(view, expected("int3-g128", 0.5))
    opened.slide("alpha", -4, view)
    assert opened.shown("alpha", view) == "0.30"
    opened.shows(view, expected("int3-g128", 0.3))
    opened.slide("bits", 1, view)
    opened.shows(view, expected("int4-g128", 0.3))
    opened.drag("alpha", 0.0, view)
    opened.shows(view, expected("int4-g128", 0.0))
    assert "output error 100.0 % of RTN's" in opened.text(view)


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("04_awq"))
