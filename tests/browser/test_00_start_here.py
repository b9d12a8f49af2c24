"""Notebook 00 in the browser."""

import pytest
from lab import questions_of

pytestmark = pytest.mark.browser


def test_the_quiz_asks_the_four_questions_of_the_lesson_and_more(opened):
    questions = questions_of("00_start_here")
    assert len(questions) > 4
    opened.answer_quiz(questions)


def test_the_map_links_to_notebooks_that_exist(opened, lab):
    links = opened.page.locator(".jp-RenderedMarkdown table a").evaluate_all("all => all.map(a => a.textContent)")
    assert len(links) == 11 - 1
    for number, text in enumerate(links, 1):
        assert text.startswith(f"{number:02d} ")
        assert list((lab.folder / "notebooks").glob(f"{number:02d}_*.ipynb")), text
