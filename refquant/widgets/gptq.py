"""Notebook 03, GPTQ: the error on its way through the columns."""

import functools

import numpy as np

from refquant import evaluate
from refquant.figures import gptq
from refquant.widgets.explorer import Explorer, check, choice_slider, explore, player


def steps(w: np.ndarray, H: np.ndarray, group_size: int) -> Explorer:
    """Step through GPTQ on a small layer `w` [n, k]: bits, the order of the columns, a slider and a play button."""

    @functools.cache
    def traced(bits, act_order):
        return evaluate.trace(w, H, f"int{bits}-g{group_size}", act_order=act_order)

    def draw(step, bits, act_order):
        return gptq.step(traced(bits, act_order), step)

    step, row = player("columns quantized", w.shape[1])
    return explore(
        draw,
        rows={"step": row},
        step=step,
        bits=choice_slider("bits", 3, [2, 3, 4]),
        act_order=check("largest inputs first", False),
    )
