"""Notebook 04, AWQ: which channels matter, what scaling one does, the curve over alpha, clipping."""

import numpy as np
from matplotlib.figure import Figure

from refquant.figures import style
from refquant.grids import as_grid
from refquant.methods import awq, rtn


def channel_errors(w: np.ndarray, x: np.ndarray, grid, s: np.ndarray | None = None) -> np.ndarray:
    """Squared output error of each input channel, float64 [k], channels taken as uncorrelated: mean(x²) sum((w' - w)²).

    With scales `s` [k], `w'` is what rounding W s leaves, divided by s.
    """
    s = np.ones(w.shape[1], np.float32) if s is None else s
    change = rtn.rounded(w * s, grid) / s - w
    return np.square(x, dtype=np.float64).mean(axis=0) * np.square(change, dtype=np.float64).sum(axis=0)


@style.figure_function
def salience(x: np.ndarray, w: np.ndarray, grid) -> Figure:
    """Mean |x| of the input channels, sorted, and the share of the output error that the first of them cause."""
    size = np.abs(x).mean(axis=0, dtype=np.float64)
    order = np.argsort(-size, kind="stable")
    errors = channel_errors(w, x, grid)[order]
    share = 100 * np.arange(1, len(order) + 1) / len(order)
    figure, (left, right) = style.subplots(1, 2, width=8.6, height=3.1)
    left.semilogy(share, size[order], color=style.BLUE)
    style.plain_log(left.yaxis)
    left.set(xlabel="input channels, largest first, %", ylabel="mean |x|", title="Size of the inputs")
    right.plot(share, 100 * errors.cumsum() / errors.sum(), color=style.VERMILION)
    right.plot([0, 100], [0, 100], ":", color=style.GREY, label="if all mattered the same")
    right.set(
        xlabel="input channels, largest first, %", ylabel="share of the output error, %", title="Error they cause"
    )
    right.axvline(1, color="black", linewidth=1, label="1 % of the channels")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(True)
    return figure


@style.figure_function
def alpha(w: np.ndarray, x: np.ndarray, grid, value: float, found: awq.Result):
    """The error over alpha with its minimum, and each channel's error at alpha = `value` against RTN's.

    Returns (Figure, text); `found` is `awq.search([w], x, grid)`, and the text states the scales and the error.
    """
    s = awq.channel_scales(value, np.abs(x).mean(axis=0, dtype=np.float64))
    change = rtn.rounded(w * s, as_grid(grid)) / s - w
    error = float(np.square(x @ change.T, dtype=np.float64).mean())
    figure, (left, right) = style.subplots(1, 2, width=8.6, height=3.2)
    left.plot(found.alphas, found.errors / found.errors[0], "-o", color=style.BLUE, markersize=3)
    left.plot(found.alpha, found.errors.min() / found.errors[0], "*", color=style.GREEN, markersize=14, label="minimum")
    left.plot(value, error / found.errors[0], "D", color=style.VERMILION, label="shown on the right")
    left.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
    left.set(xlabel="alpha", ylabel="output error / RTN's", title="Error over alpha")
    left.legend()
    before, after = channel_errors(w, x, grid), channel_errors(w, x, grid, s)
    size = np.abs(x).mean(axis=0)
    right.loglog(size, before, "o", color=style.ORANGE, markersize=4, label="RTN")
    right.loglog(size, after, "s", color=style.BLUE, markersize=3, label=f"alpha {value:.2f}")
    right.set(xlabel="mean |x| of the channel", ylabel="its output error", title="Channel by channel")
    style.plain_log(right.xaxis)
    right.minorticks_off()  # ticks take most of the time of a drawing
    right.legend(loc="upper left")
    text = (
        f"alpha {value:.2f}: scales from {s.min():.2f} to {s.max():.2f}, output error "
        f"{100 * error / found.errors[0]:.1f} % of RTN's. Minimum at alpha {found.alpha:.2f}: "
        f"{100 * found.errors.min() / found.errors[0]:.1f} %."
    )
    return figure, text


@style.figure_function
def one_channel(scales, channel: list[float], others: list[float]) -> Figure:
    """Output error of one channel that is scaled up, and of the others, over their values without scaling."""
    figure, axes = style.subplots(width=7.0, height=3.2)
    total = np.add(channel, others)
    for values, name, line, colour in (
        (channel, "the scaled channel", "-o", style.VERMILION),
        (others, "all others", "-s", style.BLUE),
        (total, "together", "--", style.BLACK),
    ):
        axes.plot(scales, np.asarray(values) / total[0], line, color=colour, label=name, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(scales, [f"{s:g}" for s in scales])
    axes.set(xlabel="scale s of one channel", ylabel="output error / all at s = 1", title="What one scale does")
    axes.set_ylim(0, 2)
    axes.grid(True)
    axes.legend()
    return figure


@style.figure_function
def clipping(shares, errors: np.ndarray) -> Figure:
    """Output error of some groups [groups, limits] over that without clipping, by the limit's share of max |w|."""
    figure, axes = style.subplots(width=7.0, height=3.2)
    for row, colour, marker in zip(errors, style.COLOURS, style.MARKERS, strict=False):
        axes.plot(shares, row / row[0], f"-{marker}", color=colour, markersize=3, linewidth=1)
        best = int(np.argmin(row))
        axes.plot(shares[best], row[best] / row[0], marker, color=colour, markersize=9)
    axes.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="limit / largest weight of the group", ylabel="output error / without clipping")
    axes.set_title("Clipping: five groups, each with its best limit")
    axes.set_yscale("log")
    style.plain_log(axes.yaxis)
    axes.invert_xaxis()
    axes.grid(True)
    return figure
