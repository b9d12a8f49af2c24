"""Notebook 04, AWQ: the exponent of the scales."""

import numpy as np

from refquant.figures import awq as figures
from refquant.methods import awq
from refquant.widgets.explorer import Explorer, choice_slider, explore, real_slider


def alpha(w: np.ndarray, x: np.ndarray, group_size: int) -> Explorer:
    """Move alpha for one layer `w` [n, k] with inputs `x` [m, k]."""
    grids = {bits: f"int{bits}-g{group_size}" for bits in (2, 3, 4)}
    found = {bits: awq.search([w], x, grid) for bits, grid in grids.items()}  # once: a search is slower than a redraw

    def draw(bits, value):
        return figures.alpha(w, x, grids[bits], value, found[bits])

    return explore(draw, bits=choice_slider("bits", 3, grids), value=real_slider("alpha", 0.5, 0.0, 1.0, 0.05))
