"""Notebook 03 in the browser."""

import pytest
from lab import questions_of

from refquant import evaluate, models
from refquant.figures import gptq as figures
from refquant.methods import gptq
from refquant.models import calibrate, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def layer():
    """The notebook's small layer: weights and Hessian."""
    model, tokenizer = models.load("tiny")
    ids = models.data.calibration("tiny", tokenizer, windows=8).ids
    name = "self_attn.o_proj"
    x = calibrate.layer_inputs(model, ids, ("x",))[4, name].x[:, :32]
    return walk.weight_array(walk.linears(walk.blocks(model)[4])[name])[:24, :32], gptq.hessian(x)


def test_stepping_through_the_columns(opened, layer):
    view, t = opened.explorer(0), evaluate.trace(*layer, "int3-g32")
    opened.shows(view, figures.step(t, 0))
    opened.slide("columns quantized", 3, view)
    opened.shows(view, figures.step(t, 3))
    opened.drag("columns quantized", 1.0, view)
    opened.shows(view, figures.step(t, 32))
    opened.slide("columns quantized", -12, view)
    opened.slide("bits", -1, view)
    opened.shows(view, figures.step(evaluate.trace(*layer, "int2-g32"), 20))
    opened.tick("largest inputs first", view)
    opened.shows(view, figures.step(evaluate.trace(*layer, "int2-g32", act_order=True), 20))


def test_play_goes_on_to_the_last_column(opened, layer):
    view = opened.explorer(0)
    opened.play(view)
    opened.wait_for(view, "Step 32 of 32")
    assert opened.shown("columns quantized", view) == "32"
    opened.shows(view, figures.step(evaluate.trace(*layer, "int2-g32", act_order=True), 32))


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("03_gptq"))
