"""Notebook 10 in the browser."""

import pytest
from lab import questions_of

from refquant.figures import verify_yours

pytestmark = pytest.mark.browser


def test_the_bugs(opened):
    view = opened.explorer(0)
    opened.shows(view, verify_yours.bug(0))
    opened.slide("bug", 4, view)
    assert opened.shown("bug", view) == "4"
    opened.shows(view, verify_yours.bug(4))
    opened.tick("tell me what it does", view)
    opened.shows(view, verify_yours.bug(4, told=True))
    assert verify_yours.decoders()[4].wrong in opened.text(view)


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("10_verify_yours"))
