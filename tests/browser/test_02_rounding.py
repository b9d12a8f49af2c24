"""Notebook 02 in the browser."""

import pytest
from lab import questions_of

from refquant import models
from refquant.figures import rounding
from refquant.models import walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def w():
    model, _ = models.load("tiny")
    return walk.weight_array(walk.linears(walk.blocks(model)[0])["mlp.down_proj"])


def test_each_control_of_the_grid_shows_what_the_package_computes(opened, w):
    view = opened.explorer(0)
    opened.shows(view, rounding.grid_on_weights(w, 4, 64, False, 0))
    opened.slide("bits", -1, view)
    assert opened.shown("bits", view) == "3"
    opened.shows(view, rounding.grid_on_weights(w, 3, 64, False, 0))
    opened.slide("group size", 2, view)
    assert opened.shown("group size", view) == "whole row"
    opened.shows(view, rounding.grid_on_weights(w, 3, None, False, 0))
    opened.tick("symmetric", view)
    opened.shows(view, rounding.grid_on_weights(w, 3, None, True, 0))
    opened.drag("row", 1.0, view)
    assert opened.shown("row", view) == str(len(w) - 1)
    opened.shows(view, rounding.grid_on_weights(w, 3, None, True, len(w) - 1))


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("02_rounding"))
