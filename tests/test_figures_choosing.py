"""Notebook 09's figures and widgets, without a browser."""

import math

import numpy as np
import pytest

from refquant.bandwidth import choose, devices, split, stack, weights
from refquant.bandwidth.units import GIB
from refquant.figures import choosing
from refquant.widgets import choosing as widgets

CARD, MEMORY = devices.find_device("rtx-4090"), devices.find_device("ddr5-5600")


def test_a_plan_states_the_layers_that_the_planner_puts_on_the_card():
    figure, text = choosing.plan("llama-3.1-70b", "Q4_K_M", CARD, MEMORY, 4096, None)
    assert text.startswith("llama-3.1-70b in Q4_K_M: 46 of 81 layers on the card")  # as the ledger's claim has it
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(bars) == pytest.approx(24.96 + 19.17, abs=0.02)  # GB, as the text says of both sides
    assert "24.96 GB" in text
    assert "19.17 GB" in text


def test_a_plan_that_does_not_fit_says_why():
    figure, text = choosing.plan("llama-3.1-70b", "F16", CARD, MEMORY, 4096, 81)
    assert "81 layers need" in text
    assert figure.axes[0].texts[0].get_text() == "This plan does not fit."


def test_by_layers_times_add():
    held = weights.store("llama-3.1-8b", "Q4_K_M")
    plans = [split.plan_split(held, CARD, MEMORY, gpu_layers=n) for n in (0, 33)]
    _, text = choosing.by_layers(plans)
    share = held.read_bytes / MEMORY.bandwidth
    cache = 4096 * 2 * 32 * 1024 * 2 / MEMORY.bandwidth  # tokens, K and V, layers, width, bytes
    assert float(text.split()[0]) == pytest.approx(1 / (share + cache), rel=0.01)


def test_options_bar_the_bytes_and_mark_what_will_do():
    answer = choose.choose("llama-3.1-8b", 8 * GIB, "gpu", "low", device=CARD)
    figure, text = choosing.options(answer)
    best = answer.accepted[0]
    assert f"take {best.candidate.label}" in text
    assert f"{len(answer.accepted)} will do, {len(answer.rejected)} not" in text
    blue = sum(len(bars) for bars in figure.axes[0].containers if bars.get_label() == "will do")
    assert blue == len(answer.accepted)
    assert max(bar.get_width() for bar in figure.axes[0].containers[0]) * 1e9 <= 8 * GIB


def test_options_with_nothing_that_fits():
    _, text = choosing.options(choose.choose("llama-3.1-405b", 2 * GIB, "gpu", "low", device=CARD))
    assert "none will do" in text


def test_stacked_multiplies_the_single_gains():
    found = stack.gains("llama-3.1-8b", "int4-g128", CARD)
    figure, text = choosing.stacked(found)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths[5] == pytest.approx(math.prod(widths[:5]))
    assert f"multiply to {widths[5]:.1f} times; together they give {widths[6]:.1f}" in text


def test_paging_fits_as_many_as_its_bytes_allow():
    figure, text = choosing.paging("llama-3.1-8b", 10**10, reserved=4096)
    paged, reserved = (line.get_ydata() for line in figure.axes[0].lines)
    np.testing.assert_allclose(reserved, 10**10 / (4096 * 2 * 32 * 1024 * 2))
    assert paged[0] > 50 * reserved[0]
    assert f"{4096 / (512 + 7.5):.1f} times as many" in text


def test_batching_of_equal_lengths_gains_nothing():
    _, text = choosing.batching([100], acceptance=0.7, draft_cost=0.1)
    assert "continuous batching gives 1.00 times static" in text


def test_the_widgets_draw_what_the_figures_draw():
    view = widgets.planner()
    view.controls["storage"].value = "Q5_K_M"
    assert choosing.plan("llama-3.1-70b", "Q5_K_M", CARD, MEMORY, 4096, None)[1] in view.line.value
    view = widgets.stacker()
    view.controls["gpu"].value = "l4"
    assert choosing.stacked(stack.gains("llama-3.1-8b", "int4-g128", devices.find_device("l4")))[1] in view.line.value
