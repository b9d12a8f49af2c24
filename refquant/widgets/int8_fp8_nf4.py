"""Notebook 06: the threshold of LLM.int8, a cast to a small float, NF4's blocks, 4-bit grids side by side."""

import numpy as np

from refquant.figures import int8_fp8_nf4 as figures
from refquant.widgets.explorer import Explorer, choice_slider, explore, menu, real_slider, slider

GRIDS = ("nf4", "mxfp4", "nvfp4", "int4-g32", "int4-g64", "int4-g64-sym")


def decomposition(x: np.ndarray, w: np.ndarray) -> Explorer:
    """Threshold, and how much larger the three largest columns of `x` [m, k] are made."""

    def draw(threshold, times):
        return figures.decomposition(x, w, threshold, times)

    return explore(
        draw,
        threshold=real_slider("threshold", 6, 0, 20, 0.5, 1),
        times=choice_slider("outliers times", 1, (1, 2, 5, 10, 20, 50, 100)),
    )


def cast() -> Explorer:
    """A number, 2 to a power, in a small float."""

    def draw(name, power, overflow):
        return figures.cast(name, 2**power, overflow)

    return explore(
        draw,
        name=menu("format", "E4M3", tuple(figures.FLOATS)),
        power=real_slider("log2 of the number", 0.3, -18, 18, 0.1, 1),
        overflow=menu("beyond the largest", "saturate", ("saturate", "nan")),
    )


def normal_levels(w: np.ndarray) -> Explorer:
    """NF4's levels by block size."""

    def draw(block):
        return figures.normal_levels(w, block)

    return explore(draw, block=choice_slider("block", 64, (32, 64, 128, 256)))


def block_levels(w: np.ndarray) -> Explorer:
    """The levels of a 4-bit grid on 64 weights of the first row."""

    def draw(name, block):
        return figures.block_levels(w, name, block)

    return explore(
        draw, name=menu("grid", "nf4", GRIDS), block=slider("64 weights, number", 0, 0, w.shape[1] // 64 - 1)
    )
