"""Notebook 09 in the browser."""

import pytest
from lab import questions_of

from refquant.bandwidth import choose, devices, stack
from refquant.bandwidth.units import GIB
from refquant.figures import choosing

pytestmark = pytest.mark.browser
CARD, MEMORY = devices.find_device("rtx-4090"), devices.find_device("ddr5-5600")


def test_the_planner_plans_what_the_package_plans(opened):
    view = opened.explorer(0)
    opened.shows(view, choosing.plan("llama-3.1-70b", "Q4_K_M", CARD, MEMORY, 4096, None))
    opened.choose("type", "Q3_K_M", view)
    opened.slide("context", 1, view)
    opened.shows(view, choosing.plan("llama-3.1-70b", "Q3_K_M", CARD, MEMORY, 8192, None))
    opened.tick("as many layers on the card as fit", view)
    opened.slide("layers on the card", -5, view)
    opened.shows(view, choosing.plan("llama-3.1-70b", "Q3_K_M", CARD, MEMORY, 8192, 15))
    opened.drag("layers on the card", 1.0, view)
    refused = opened.text(view)
    assert "need" in refused
    assert refused == choosing.plan("llama-3.1-70b", "Q3_K_M", CARD, MEMORY, 8192, 127)[1]
    card = devices.find_device("h200")
    opened.choose("card", card.title, view)
    opened.shows(view, choosing.plan("llama-3.1-70b", "Q3_K_M", card, MEMORY, 8192, 127))


def test_the_chooser_answers_the_three_questions(opened):
    view = opened.explorer(1)
    opened.shows(view, choosing.options(choose.choose("llama-3.1-8b", 24 * GIB, "gpu", "low", device=CARD)))
    opened.slide("memory, GiB", -15, view)
    opened.slide("loss accepted", -1, view)
    assert opened.shown("memory, GiB", view) == "9"
    answer = choose.choose("llama-3.1-8b", 9 * GIB, "gpu", "lossless", device=CARD)
    opened.shows(view, choosing.options(answer))
    opened.choose("where", "cpu", view)
    answer = choose.choose("llama-3.1-8b", 9 * GIB, "cpu", "lossless", device=MEMORY)
    opened.shows(view, choosing.options(answer))


def test_batching_and_speculation(opened):
    view = opened.explorer(2)
    opened.slide("tokens of a request", -4, view)
    opened.slide("acceptance", 3, view)
    assert opened.shown("acceptance", view) == "0.85"
    opened.shows(view, choosing.batching([64], 0.85, 0.15))
    assert "continuous batching gives 1.00 times static" in opened.text(view)


def test_the_stack(opened):
    view = opened.explorer(3)
    card = devices.find_device("h100-sxm")
    opened.choose("card", card.title, view)
    opened.shows(
        view, choosing.stacked(stack.gains("llama-3.1-8b", "int4-g128", card), f"Llama-3.1-8B on {card.title}")
    )


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("09_choosing"))
