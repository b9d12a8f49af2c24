"""Notebook 10 in the browser."""

import pytest
from lab import questions_of

from refquant.figures import verify_yours

pytestmark = pytest.mark.browser


def test_the_bugs(opened):
    view = opened.explorer(0)
    assert opened.text(view) == verify_yours.bug(0)[1]
    opened.slide("bug", 4, view)
    assert opened.shown("bug", view) == "4"
    assert opened.text(view) == verify_yours.bug(4)[1]
    opened.tick("tell me what it does", view)
    assert opened.text(view) == verify_yours.bug(4, told=True)[1]
    assert verify_yours.decoders()[4].wrong in opened.text(view)


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("10_verify_yours"))
