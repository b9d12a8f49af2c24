"""Notebook 04, AWQ: the exponent of the scales, and how many channels are kept in 16 bits."""

import functools

import numpy as np

from refquant.figures import awq as figures
from refquant.methods import awq
from refquant.widgets.explorer import Explorer, choice_slider, explore, real_slider


def alpha(w: np.ndarray, x: np.ndarray, group_size: int) -> Explorer:
    """Move alpha for one layer `w` [n, k] with inputs `x` [m, k]."""

    @functools.cache
    def searched(bits):
        return awq.search([w], x, f"int{bits}-g{group_size}")

    def draw(bits, value):
        return figures.alpha(w, x, f"int{bits}-g{group_size}", value, searched(bits))

    return explore(draw, bits=choice_slider("bits", 3, [2, 3, 4]), value=real_slider("alpha", 0.5, 0.0, 1.0, 0.05))
