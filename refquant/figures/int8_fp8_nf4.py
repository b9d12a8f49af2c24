"""Notebook 06: LLM.int8's decomposition, the grid of a small float, NF4's quantiles, 4-bit blocks."""

from statistics import NormalDist

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1, E4M3, E5M2, NF4, SmallFloat
from refquant.figures import style
from refquant.grids import as_grid
from refquant.methods import llm_int8

FLOATS = {"E4M3": E4M3, "E5M2": E5M2, "E2M1": E2M1}


def larger(x: np.ndarray, columns: int, times: float) -> np.ndarray:
    """Inputs `x` [m, k] whose `columns` columns of largest magnitude are `times` as large."""
    x = x.copy()
    x[:, np.argsort(-np.abs(x).max(axis=0))[:columns]] *= np.float32(times)
    return x


def output_errors(x: np.ndarray, w: np.ndarray, thresholds: tuple[float, ...]) -> list[float]:
    """Squared error of LLM.int8's product of `x` [m, k] with `w` [n, k] at each threshold, over the exact squares."""
    q, exact = ops.quantize(w, "llm-int8"), x.astype(np.float64) @ w.T.astype(np.float64)
    size = np.square(exact).sum()
    return [float(np.square(llm_int8.matmul(x, q, threshold=at) - exact).sum() / size) for at in thresholds]


@style.figure_function
def decomposition(x: np.ndarray, w: np.ndarray, threshold: float = 6.0, times: float = 1.0, columns: int = 3):
    """Columns of inputs that LLM.int8 sets apart, and the error of the product by threshold. (Figure, text).

    The `columns` largest columns of `x` [m, k] are made `times` as large first.
    """
    x = larger(x, columns, times)
    peaks = np.abs(x).max(axis=0)
    apart = llm_int8.outliers(x, threshold).any(axis=0)
    error, plain = output_errors(x, w, (threshold, 0))
    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.0, width_ratios=(3, 1), across=1.0)
    left.plot(np.flatnonzero(~apart), peaks[~apart], "o", color=style.BLUE, markersize=3, label="in 8 bits")
    left.plot(np.flatnonzero(apart), peaks[apart], "^", color=style.VERMILION, markersize=6, label="set apart")
    if threshold:
        left.axhline(threshold, color=style.GREY, linestyle="--", linewidth=1.2)
    left.set(xlabel="input column", ylabel="largest |x|", yscale="log", title="Which columns are set apart")
    style.plain_log(left.yaxis)
    left.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.75, 1.16))
    right.bar(["all in\n8 bits", "split"], [100 * plain, 100 * error], color=[style.SKY, style.VERMILION])
    right.set(ylabel="squared output error, %", title="Error")
    text = (
        f"Threshold {threshold:g}: {int(apart.sum())} of {len(apart)} columns set apart; output error {error:.3g}, "
        f"without decomposition {plain:.3g}."
    )
    return figure, text


@style.figure_function
def cast(name: str, x: float, overflow: str = "saturate"):
    """The values of a small float on a line, and where the number `x` goes. Returns (Figure, text)."""
    book: SmallFloat = FLOATS[name]
    if book.special == "none":
        overflow = "saturate"
    code = int(book.encode(np.float32([x]), overflow)[0])
    value = float(book.values[code])
    bits = f"{code:0{book.bits}b}"
    fields = f"{bits[0]} {bits[1 : 1 + book.exponent_bits]} {bits[1 + book.exponent_bits :]}"
    figure, axes = style.subplots(width=8.4, height=2.0, left=0.3, right=0.3, bottom=0.55)
    least = float(book.magnitudes[1])
    values = book.magnitudes[book.magnitudes > 0]
    axes.vlines(values, 0, 0.6, color=style.BLUE, linewidth=0.7)
    axes.axvline(book.max, color=style.GREY, linestyle="--", linewidth=1)
    axes.text(book.max, 1.03, f"largest {book.max:g} ", ha="right", va="bottom", fontsize=9, color=style.GREY)
    axes.plot([max(abs(x), least / 2)], [0.85], "v", color=style.VERMILION, markersize=9)
    if np.isfinite(value) and value:
        axes.plot([abs(value)], [0.3], "o", color=style.VERMILION, markersize=6)
    axes.set(xscale="log", xlim=(least / 2.5, book.max * 4), ylim=(0, 1), xlabel=f"|value| in {name} (log)")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    error = f", {100 * abs(value - x) / abs(x):.2f} % off" if np.isfinite(value) and x else ""
    beyond = abs(x) > float(book.magnitudes[-1]) and abs(value) == book.max
    note = " (saturated)" if beyond else ""
    return figure, f"{name}: {x:.6g} becomes {fields} = {value:g}{error}{note}."


@style.figure_function
def relative_errors():
    """Relative rounding error by magnitude, for a group whose largest weight is 1: INT8, E4M3, E5M2. (Figure, text)."""
    x = np.geomspace(1e-5, 1, 4000).astype(np.float32)
    figure, axes = style.subplots(width=7.4, height=3.2)
    found = {}
    for name, encode, line in (
        ("INT8", lambda v: np.rint(v * 127) / 127, "-"),
        ("E4M3", lambda v: E4M3.decode(E4M3.encode(v * np.float32(448))) / 448, "--"),
        ("E5M2", lambda v: E5M2.decode(E5M2.encode(v * np.float32(57344))) / 57344, "-."),
    ):
        error = np.abs(encode(x) - x) / x
        worst = np.maximum.reduceat(error, np.arange(0, len(x), 40))  # the envelope of the saw teeth
        axes.plot(x[20::40], worst, line, label=name)
        found[name] = float(error[x > 0.01].max())
    axes.set(xscale="log", yscale="log", xlabel="|weight| / largest of its group", ylabel="largest relative error")
    axes.grid(True)
    axes.legend()
    parts = ", ".join(f"{name} {100 * error:.1f} %" for name, error in found.items())
    return figure, f"Largest relative error of weights above a hundredth of the largest: {parts}."


@style.figure_function
def normal_levels(w: np.ndarray, block: int = 64):
    """NF4's levels on `w` [n, k], each block over its largest, and how often each is used. (Figure, text)."""
    blocks = w.reshape(-1, block)
    scaled = blocks / np.maximum(np.abs(blocks).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    codes = NF4.encode(scaled)
    used = np.bincount(codes.ravel(), minlength=16) / codes.size
    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.1)
    left.stairs(*np.histogram(scaled, bins=np.linspace(-1, 1, 81), density=True), fill=True, color=style.SKY)
    sigma = float(scaled.std())
    line = np.linspace(-1, 1, 200)
    left.plot(line, [NormalDist(0, sigma).pdf(v) for v in line], color=style.BLACK, linewidth=1.2, label="normal")
    left.vlines(NF4.values, 0, 1, transform=left.get_xaxis_transform(), color=style.VERMILION, linewidth=1)
    left.set(xlabel="weight / largest of its block", ylabel="density", title=f"Blocks of {block}")
    left.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="white", borderpad=0.2)
    right.bar(range(16), 100 * used, color=style.BLUE)
    right.set_xticks(range(0, 16, 3))
    right.axhline(100 / 16, color=style.GREY, linestyle="--", linewidth=1.2)
    right.set(xlabel="code", ylabel="% of the weights", title="How often each is used")
    text = (
        f"Blocks of {block}: the codes are used by {100 * used.min():.1f} to {100 * used.max():.1f} % of the weights, "
        f"evenly would be {100 / 16:.2f} %; {4 + 32 / block:.3f} bits a weight."
    )
    return figure, text


@style.figure_function
def block_levels(w: np.ndarray, name: str, block: int = 0):
    """The 16 levels that a grid gives to the 64 weights of one piece of the first row of `w`. (Figure, text)."""
    grid = as_grid(name, w)
    row = w[:1]
    scales, zeros = grid.fit_groups(row)
    index = grid.group_index(row.shape[1])
    codes = grid.encode(row, scales[:, index], zeros[:, index])
    back = grid.decode(codes, scales[:, index], zeros[:, index])[0]
    part = slice(64 * block, 64 * block + 64)
    size = grid.group_size or row.shape[1]
    figure, axes = style.subplots(width=8.4, height=3.3)
    all_codes = np.arange(16, dtype=np.uint8)
    for first in range(64 * block, 64 * block + 64, min(size, 64)):
        g = index[first]
        levels = grid.decode(all_codes, scales[0, g], zeros[0, g])
        axes.hlines(levels, first - 0.5, first + min(size, 64) - 0.5, color=style.ORANGE, linewidth=0.9)
    places = np.arange(part.start, part.stop)
    axes.vlines(places, row[0, part], back[part], color=style.VERMILION, linewidth=1.3)
    axes.plot(places, row[0, part], "o", color=style.BLUE, markersize=3.5)
    axes.set(xlabel="column", ylabel="weight", title=f"{name}: levels and errors")
    lost = np.square(back[part] - row[0, part], dtype=np.float64).sum()
    share = lost / np.square(row[0, part], dtype=np.float64).sum()
    bits = ops.quantize(w, name).bits_per_weight
    return figure, f"{name}: {bits:.3f} bits a weight; squared error of these 64 weights {100 * share:.3f} %."
