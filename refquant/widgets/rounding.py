"""Notebook 02, rounding: the histogram with its grid."""

import numpy as np

from refquant.figures import rounding
from refquant.widgets.explorer import Explorer, check, choice_slider, explore, slider

SIZES = [("32", 32), ("64", 64), ("128", 128), ("whole row", -1)]


def grid_on_weights(w: np.ndarray) -> Explorer:
    """Bits, group size and symmetry of a grid on the weights `w` [n, k]."""

    def draw(bits, group_size, sym, row):
        return rounding.grid_on_weights(w, bits, group_size, sym, row)

    return explore(
        draw,
        bits=slider("bits", 4, 2, 8),
        group_size=choice_slider("group size", 64, SIZES),
        sym=check("symmetric", False),
        row=slider("row", 0, 0, len(w) - 1),
    )
