"""Notebook 07 in the browser."""

import pytest
from lab import questions_of

from refquant.figures import on_disk

pytestmark = pytest.mark.browser


def test_the_code_of_any_weight(opened):
    view = opened.explorer(0)
    assert opened.text(view) == (
        "GPTQ: qweight[2, 2] bits 23..20; AWQ: qweight[21, 0] bits 7..4; compressed-tensors: weight_packed[2, 2] bits "
        "23..20; GGUF Q4_0: blocks[2, 7] bits 7..4."
    )
    opened.slide("row (output)", 7, view)
    opened.shows(view, on_disk.words((64, 64), 9, 21))
    opened.drag("column (input)", 1.0, view)
    assert opened.shown("column (input)", view) == "63"
    opened.shows(view, on_disk.words((64, 64), 9, 63))


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("07_on_disk"))
