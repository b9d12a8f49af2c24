"""Notebook 03, GPTQ: the error on its way through the columns, damping, the order of the columns."""

import numpy as np
from matplotlib.figure import Figure

from refquant.evaluate import Trace
from refquant.figures import style


@style.figure_function
def step(t: Trace, number: int):
    """How far the weights have moved after `number` steps, in the loop's order, and the output error so far.

    Returns (Figure, text); the text states the column, its error and the layer's.
    """
    k = len(t.order)
    moved = (t.states - t.states[0])[:, :, t.order]  # [k + 1, n, k]
    limit = float(np.abs(moved[-1]).max())
    figure, (left, right) = style.subplots(1, 2, width=9.0, height=3.2, width_ratios=(3, 2), across=1.7, top=0.4)
    image = left.imshow(moved[number], cmap=style.DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    left.axvline(number - 0.5, color="black", linewidth=1.5)
    left.set(xlabel="input column, in the order of quantization", ylabel="output row")
    left.set_title("Change of each weight; left of the line: on the grid")
    box = left.get_position()
    bar = figure.add_axes((box.x1 + 0.012, box.y0, 0.014, box.height))
    figure.colorbar(image, cax=bar, label="change of the weight")
    steps = np.arange(k + 1)
    for errors, name, line, colour in (
        (t.rounded_errors, "rounded only (RTN)", "--", style.ORANGE),
        (t.errors, "rest makes up for it (GPTQ)", "-", style.BLUE),
    ):
        right.plot(steps, 100 * errors, line, color=colour, label=name)
        right.plot(number, 100 * errors[number], "o", color=colour)
    right.set(xlabel="columns quantized", ylabel="squared output error, %", title="Error so far")
    right.legend(loc="upper left")
    right.set_ylim(0, 130 * max(t.rounded_errors.max(), t.errors.max()))
    if number == 0:
        what = f"Before the first of {k} steps: nothing has changed."
    else:
        j = t.order[number - 1]
        own = np.abs(t.states[number][:, j] - t.states[number - 1][:, j]).max()
        pushed = np.abs(np.delete(t.states[number] - t.states[number - 1], j, axis=1)).max()
        what = (
            f"Step {number} of {k}, column {j}: rounding moves it by up to {own:.4f}, the free columns take up "
            f"to {pushed:.4f}. Output error {100 * t.errors[number]:.3f} %, by rounding alone "
            f"{100 * t.rounded_errors[number]:.3f} %."
        )
    return figure, what


@style.figure_function
def hessian(H: np.ndarray) -> Figure:
    """The correlations that make compensation possible: H scaled to a diagonal of ones, and that diagonal, sorted."""
    size = np.sqrt(np.diag(H))
    size = np.where(size > 0, size, 1)
    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.4, width_ratios=(1, 1), across=1.6)
    image = left.imshow(H / np.outer(size, size), cmap=style.DIVERGING, vmin=-0.5, vmax=0.5)
    left.set(xlabel="input column", ylabel="input column", title="Correlation of the inputs")
    box = left.get_position()
    figure.colorbar(
        image, cax=figure.add_axes((box.x1 + 0.012, box.y0, 0.016, box.height)), extend="both", label="correlation"
    )
    right.plot(np.sort(np.diag(H))[::-1], color=style.BLUE)
    right.set_yscale("log")
    right.set(xlabel="input columns, largest first", ylabel="diagonal of H", title="Size of the inputs")
    right.grid(True)
    return figure


@style.figure_function
def damping(damps, few: list[float], many: list[float], rounded: float) -> Figure:
    """Output error on other text against the damping, for a Hessian of few and of many tokens; RTN as a line."""
    figure, axes = style.subplots(width=7.2, height=3.2)
    axes.plot(damps, [100 * e for e in few], "-o", color=style.VERMILION, label="H from few tokens")
    axes.plot(damps, [100 * e for e in many], "-s", color=style.BLUE, label="H from many tokens")
    axes.axhline(100 * rounded, color=style.GREY, linestyle="--", label="RTN")
    axes.set_xscale("log")
    axes.set(xlabel="damping, share of the mean diagonal of H", ylabel="squared output error, %")
    axes.set_title("Error on text that H never saw")
    axes.set_ylim(bottom=0)
    axes.grid(True)
    axes.legend()
    return figure


@style.figure_function
def layers(names: list[str], errors: dict[str, list[float]]) -> Figure:
    """Relative output error of each layer (log), by method."""
    figure, axes = style.subplots(width=8.4, height=3.4, bottom=1.05)
    for (method, values), marker, colour in zip(errors.items(), style.MARKERS, style.COLOURS, strict=False):
        axes.plot(range(len(names)), [100 * e for e in values], marker, color=colour, label=method, markersize=6)
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set(ylabel="squared output error, %", title="Layer by layer")
    axes.grid(True, axis="y")
    axes.legend(ncols=len(errors))
    return figure
