"""Notebook 02, rounding: a histogram of weights with the grid on it, error by group size, channels of activations."""

import numpy as np
from matplotlib.figure import Figure

from refquant.figures import style
from refquant.grids import IntGrid
from refquant.methods import rtn


@style.figure_function
def grid_on_weights(w: np.ndarray, bits: int = 4, group_size: int | None = 64, sym: bool = False, row: int = 0):
    """Histogram of the first group of a row of `w` [n, k] with its levels as lines, and of the rounding errors of `w`.

    Returns (Figure, text); the text states the step, the zero-point, the error of the whole matrix and its bits.
    """
    grid = IntGrid(bits, group_size, sym)
    group = w[row : row + 1, : grid.group_size or w.shape[1]]
    scale, zero = grid.fit(group)
    levels = grid.decode(np.arange(grid.max_code + 1), scale, zero)
    error = rtn.rounded(w, grid) - w
    steps = grid.fit_groups(w)[0][:, grid.group_index(w.shape[1])]  # [n, k]
    relative = float(np.square(error, dtype=np.float64).sum() / np.square(w, dtype=np.float64).sum())
    bits_per_weight = rtn.quantize(w, grid).bits_per_weight

    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.1, width_ratios=(3, 2))
    left.stairs(*np.histogram(group[0], bins=40), fill=True, color=style.SKY)
    thin = 1.0 if bits < 6 else 0.3
    left.vlines(
        levels, 0, 1, transform=left.get_xaxis_transform(), color=style.VERMILION, linewidth=thin, label="levels"
    )
    left.set(xlabel="weight", ylabel="weights", title=f"A group of {group.size} weights, {2**bits} levels")
    left.set_ylim(bottom=0)
    counts, edges = np.histogram(error / steps, bins=np.linspace(-0.75, 0.75, 61))
    right.stairs(counts / 1000, edges, fill=True, color=style.BLUE)
    right.set(xlabel="error, in steps of its own group", ylabel="weights, thousands", title="Errors of the whole layer")
    right.set_ylim(bottom=0)
    right.set_xticks([-0.5, 0, 0.5])
    text = (
        f"{grid.name}: step {scale[0]:.5f}, zero-point {int(zero[0])}, squared error {100 * relative:.3f} % of the "
        f"layer's weights, {bits_per_weight:.3f} bits a weight."
    )
    return figure, text


@style.figure_function
def error_by_bits(sizes: list, errors: dict[int, list[float]], bits: dict[int, list[float]]) -> Figure:
    """Relative output error (log) against stored bits a weight: a line for each width, a point for each group size."""
    figure, axes = style.subplots(width=7.2, height=3.6)
    for (width, values), marker, colour in zip(errors.items(), style.MARKERS, style.COLOURS, strict=False):
        axes.plot(bits[width], values, marker=marker, color=colour, label=f"{width}-bit codes")
        for end, size, side in ((0, sizes[0], "right"), (-1, sizes[-1], "left")):  # the points between lie too close
            at, away = (bits[width][end], values[end]), (-6 if side == "right" else 6, 0)
            name = "row" if size is None else f"g{size}"
            axes.annotate(name, at, textcoords="offset points", xytext=away, ha=side, va="center", fontsize=8)
    axes.set_yscale("log")
    axes.set(xlabel="stored bits a weight (scales and zero-points included)", ylabel="squared output error / output²")
    axes.grid(True)
    axes.margins(x=0.08)
    axes.legend()
    return figure


@style.figure_function
def channels(x: np.ndarray, w: np.ndarray) -> Figure:
    """Largest magnitude of each input channel of `x` [m, k] and of each column of `w` [n, k], over their medians."""
    figure, axes = style.subplots(width=7.6, height=3.2)
    for values, name, marker, colour in ((x, "inputs", "o", style.VERMILION), (w, "weights", "s", style.BLUE)):
        size = np.abs(values)
        axes.plot(size.max(axis=0) / np.median(size), marker, color=colour, markersize=3, label=name)
    axes.axhspan(10, 100, color="0.93", zorder=0)
    axes.text(x.shape[1] * 0.995, 11, "10 to 100 times", ha="right", va="bottom", fontsize=9, color=style.GREY)
    axes.set_yscale("log")
    axes.set(xlabel="input channel", ylabel="largest / median magnitude", title="How far each channel strays")
    axes.legend(loc="upper right", ncols=2)
    return figure
