"""Widgets without a browser: they call the figures with the controls' values, and a quiz knows its answers."""

import gc
import html
import weakref

import numpy as np
import pytest

from refquant.errors import BadInput
from refquant.figures import rounding as figures
from refquant.figures import style
from refquant.methods import gptq as methods_gptq
from refquant.widgets import (
    awq,
    bandwidth,
    choosing,
    explorer,
    gptq,
    int8_fp8_nf4,
    kernels,
    kquants,
    on_disk,
    quiz,
    rounding,
    verify_yours,
)

RNG = np.random.default_rng(0)
W = RNG.normal(size=(32, 128)).astype(np.float32)
X = (RNG.normal(size=(64, 128)) * RNG.uniform(0.1, 9, 128)).astype(np.float32)
VIEWS = {
    "bandwidth": bandwidth.roofline,
    "rounding": lambda: rounding.grid_on_weights(W),
    "gptq": lambda: gptq.steps(W[:8, :32], methods_gptq.hessian(X[:, :32]), 32),
    "awq": lambda: awq.alpha(W, X, 64),
    "kquants": lambda: kquants.search(W[0]),
    "decomposition": lambda: int8_fp8_nf4.decomposition(X, W),
    "cast": int8_fp8_nf4.cast,
    "normal levels": lambda: int8_fp8_nf4.normal_levels(W),
    "block levels": lambda: int8_fp8_nf4.block_levels(W),
    "on disk": lambda: on_disk.words((32, 64)),
    "kernels": kernels.floor,
    "planner": choosing.planner,
    "chooser": choosing.chooser,
    "stacker": choosing.stacker,
    "batching": choosing.batching,
    "verify yours": verify_yours.bugs,
}


def other_values(control) -> list:
    """Two more values of a control, one where there are no more: the extremes, which change axes most."""
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return [value for value in (values[-1], values[0]) if value != control.value]
    if hasattr(control, "min"):
        return [value for value in (control.max, control.min) if value != control.value]
    return [not control.value]


@pytest.mark.parametrize("name", VIEWS)
def test_drawing_again_on_kept_axes_gives_the_picture_that_new_ones_give(name):
    view = VIEWS[name]()
    for control in view.controls.values():
        for value in other_values(control):
            control.value = value
            new = view.draw(**{name: control.value for name, control in view.controls.items()})
            assert view.picture.value == style.img(*new)


def test_a_drawing_leaves_no_garbage_and_collecting_as_it_was():
    class Ring:
        def __init__(self):
            self.me = self  # only the collector can free it

    made = []

    def draw(bits):
        ring = Ring()
        made.append(weakref.ref(ring))
        return style.subplots()[0], str(bits)

    view = explorer.explore(draw, bits=explorer.slider("bits", 4, 2, 8))
    view.controls["bits"].value = 3
    assert [ring() for ring in made] == [None, None]
    assert gc.isenabled()
    gc.disable()
    try:
        view.redraw()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_explorer_draws_again_with_the_values_of_its_controls():
    calls = []

    def draw(bits, sym):
        calls.append((bits, sym))
        return style.subplots()[0], f"{bits} bits < {sym}"

    view = explorer.explore(draw, bits=explorer.slider("bits", 4, 2, 8), sym=explorer.check("symmetric", False))
    view.controls["bits"].value = 3
    view.controls["sym"].value = True
    assert calls == [(4, False), (3, False), (3, True)]
    assert view.line.value == '<p role="status">3 bits &lt; True</p>'
    assert 'alt="3 bits &lt; True"' in view.picture.value


def test_a_player_is_a_slider_that_a_button_moves():
    value, row = explorer.player("step", 10)
    view = explorer.explore(lambda step: (style.subplots()[0], str(step)), rows={"step": row}, step=value)
    assert view.children[0] is row
    value.value = 7
    assert ">7<" in html.unescape(view.line.value)


QUESTION = quiz.Question("2 + 2?", ("4", "Yes, indeed."), [("5", "One too many."), ("22", "That is the text.")])


def test_a_quiz_answers_each_choice_with_its_own_feedback():
    view = quiz.quiz(QUESTION).children[0]
    assert view.choice.value is None
    for answer, reply in QUESTION.answers:
        view.choice.value = answer
        assert reply in view.reply.value
        assert ("Right." in view.reply.value) == (answer == "4")


def test_a_quiz_without_widgets_shows_questions_and_folds_the_answers():
    page = quiz.quiz(QUESTION)._repr_mimebundle_()["text/html"]
    question, answers = page.split("<details>")
    assert "2 + 2?" in question
    assert "One too many." not in question
    assert "One too many." in answers


@pytest.mark.parametrize(
    ("right", "wrong"),
    [(("4", "Yes"), []), (("4", ""), [("5", "No")]), (("4", "Yes"), [("5", "")]), (("4", "Yes"), [("4", "No")])],
)
def test_a_question_needs_feedback_for_each_answer(right, wrong):
    with pytest.raises(BadInput):
        quiz.Question("2 + 2?", right, wrong)


def test_the_rounding_view_shows_what_the_figure_says():
    w = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    view = rounding.grid_on_weights(w)
    view.controls["bits"].value = 3
    view.controls["group_size"].value = -1
    assert figures.grid_on_weights(w, 3, None, False, 0)[1] in html.unescape(view.line.value)
