"""Notebook 08 in the browser."""

import pytest
from lab import questions_of

from refquant.bandwidth import devices
from refquant.figures import kernels

pytestmark = pytest.mark.browser


def test_the_floor(opened):
    view = opened.explorer(0)
    card = devices.find_device("h100-sxm")
    opened.shows(view, kernels.floor("int4-g128", (4096, 4096), card, 1))
    opened.slide("tokens", 9, view)
    assert opened.shown("tokens", view) == "512"
    opened.shows(view, kernels.floor("int4-g128", (4096, 4096), card, 512))
    assert "bound by arithmetic" in opened.text(view)
    opened.choose("weights", "Q4_K", view)
    opened.choose("matrix", "28672 x 8192", view)
    a100 = devices.find_device("a100-80gb")
    opened.choose("device", a100.title, view)
    opened.shows(view, kernels.floor("Q4_K", (28672, 8192), a100, 512))


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("08_kernels"))
