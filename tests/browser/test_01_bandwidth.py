"""Notebook 01 in the browser."""

import pytest
from lab import questions_of

from refquant.bandwidth import weights
from refquant.bandwidth.devices import DEVICES
from refquant.figures import bandwidth

pytestmark = pytest.mark.browser


def expected(model="llama-3.1-8b", storage="int4-g128", device="rtx-4090", batch=1, context=1024):
    return bandwidth.roofline(weights.store(model, storage), DEVICES[device], batch, context)


def test_each_control_of_the_roofline(opened):
    view = opened.explorer(0)
    opened.shows(view, expected())
    opened.choose("device", DEVICES["a100-80gb"].title, view)
    opened.shows(view, expected(device="a100-80gb"))
    opened.choose("model", "llama-3.1-70b", view)
    opened.shows(view, expected("llama-3.1-70b", device="a100-80gb"))
    opened.slide("bits a weight", -2, view)
    assert opened.shown("bits a weight", view) == "16"
    opened.shows(view, expected("llama-3.1-70b", "F16", "a100-80gb"))
    opened.drag("batch", 1.0, view)
    opened.shows(view, expected("llama-3.1-70b", "F16", "a100-80gb", 512))
    opened.drag("context, tokens", 0.0, view)
    opened.shows(view, expected("llama-3.1-70b", "F16", "a100-80gb", 512, 128))
    assert "Bound by arithmetic" in opened.text(view)


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("01_bandwidth"))
