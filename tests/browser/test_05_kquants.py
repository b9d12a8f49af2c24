"""Notebook 05 in the browser."""

import numpy as np
import pytest
from lab import questions_of

import refquant as rq
from refquant import bandwidth, inspect_block, models
from refquant.figures import kquants
from refquant.ggml_types import ggml_type
from refquant.methods import mixes
from refquant.models import mix, walk

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def model():
    return models.load("tiny")[0]


@pytest.fixture(scope="module")
def w(model):
    return walk.weight_array(walk.linears(walk.blocks(model)[3])["mlp.down_proj"])


def block_of(w, name, index):
    size = ggml_type(name).bytes
    per_row = w.shape[1] // ggml_type(name).weights
    row = rq.quantize(w[index // per_row : index // per_row + 1], name).arrays["blocks"][0]
    return row[index % per_row * size :][:size]


def marked(view):
    """Bits by the number that they are marked as part of."""
    cells = view.locator(".rq-bit[data-part]")
    found = cells.evaluate_all("cells => cells.map(c => [c.dataset.part, Number(c.dataset.at)])")
    return {kind: {at for k, at in found if k == kind} for kind, _ in found}


def check_weight(opened, view, block, name, i):
    """What the viewer shows of weight i is what the package says of it, bit by bit."""
    opened.idle()
    want = inspect_block.weight(block, name, i)
    assert view.locator(".rq-title").inner_text() == f"Weight {i} of {name} is {want.value:.6g}"
    assert view.locator(".rq-step").all_inner_texts() == list(want.steps)
    assert marked(view) == {part.field: set(part.bits) for part in want.parts}
    shown = view.locator(".rq-bit").evaluate_all(
        "cells => { const v = []; for (const c of cells) v[Number(c.dataset.at)] = Number(c.textContent); return v }"
    )
    assert np.array_equal(shown, np.unpackbits(block, bitorder="little"))


def test_every_format_shows_the_bits_of_the_weight_that_was_clicked(opened, w):
    view = opened.page.locator(".refquant-blocks")
    check_weight(opened, view, block_of(w, "Q4_K", 0), "Q4_K", 200)
    for name in inspect_block.BLOCK_FORMATS:
        opened.choose("format", name, view)
        block = block_of(w, name, 0)
        for i in (5, ggml_type(name).weights - 1):
            view.locator(f'.rq-weight[data-at="{i}"]').click()
            check_weight(opened, view, block, name, i)


def test_another_block_and_the_keyboard(opened, w):
    view = opened.page.locator(".refquant-blocks")
    opened.choose("format", "Q6_K", view)
    opened.slide("block", 4, view)
    assert opened.shown("block", view) == "4"
    block = block_of(w, "Q6_K", 4)
    view.locator('.rq-weight[data-at="40"]').click()
    for key, i in (("ArrowRight", 41), ("ArrowDown", 57), ("ArrowLeft", 56), ("ArrowUp", 40), ("End", 255)):
        opened.page.keyboard.press(key)
        check_weight(opened, view, block, "Q6_K", i)


def test_a_bit_shows_the_weights_that_it_can_change(opened, w):
    view = opened.page.locator(".refquant-blocks")
    opened.choose("format", "Q5_K", view)
    opened.slide("block", -9, view)
    block = block_of(w, "Q5_K", 0)
    for at in (3, 8 * 6 + 7, 8 * 20 + 2, 8 * 175 + 7):
        view.locator(f'.rq-bit[data-at="{at}"]').click()
        opened.idle()
        want = inspect_block.bit(block, "Q5_K", at)
        lit = view.locator(".rq-weight.rq-on").evaluate_all("cells => cells.map(c => Number(c.dataset.at))")
        assert tuple(lit) == want.weights
        assert f"belongs to {', '.join(want.owners)} " in view.locator(".rq-title").inner_text()


def test_the_search_trial_by_trial(opened, w):
    view = opened.explorer(0)
    opened.shows(view, kquants.search(w[0, :32], 21))
    opened.slide("trials", -20, view)
    opened.slide("sub-block", 3, view)
    opened.shows(view, kquants.search(w[0, 96:128], 1))


def test_the_map_of_a_mix(opened, model):
    view = opened.explorer(1)
    llama = bandwidth.shapes.find_shape("llama-3.1-8b")
    opened.shows(view, kquants.mix_map(mixes.plan(llama.tensors(), "Q4_K_M", llama.mix_model), "Llama-3.1-8B, "))
    opened.choose("mix", "Q3_K_L", view)
    opened.shows(view, kquants.mix_map(mixes.plan(llama.tensors(), "Q3_K_L", llama.mix_model), "Llama-3.1-8B, "))
    opened.choose("model", "tiny", view)
    opened.shows(view, kquants.mix_map(mix.plan(model, "Q3_K_L"), "tiny, "))


def test_the_quiz(opened):
    opened.answer_quiz(questions_of("05_kquants"))
