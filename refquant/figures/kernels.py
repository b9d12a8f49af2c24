"""Notebook 08, kernels: rungs against the floor, the floor by tokens, what was recorded."""

import numpy as np
from matplotlib.ticker import NullFormatter

from refquant import ops
from refquant.bandwidth.devices import Device
from refquant.bench.recorded import Table
from refquant.figures import style


@style.figure_function
def rungs(seconds: dict[str, float], nbytes: int, bandwidth: float, title: str = ""):
    """Weights read per second by each rung, and the memory's own bandwidth as the ceiling. Returns (Figure, text).

    `seconds` for one product whose weights take `nbytes`; `bandwidth` in bytes per second.
    """
    rates = [nbytes / value / 1e9 for value in seconds.values()]
    figure, axes = style.subplots(width=8.4, height=0.95 + 0.36 * len(rates), left=2.9, right=0.8)
    axes.barh([*seconds], rates, color=style.BLUE, height=0.65)
    axes.axvline(bandwidth / 1e9, color=style.VERMILION, linestyle="--", linewidth=1.4)
    for place, rate in enumerate(rates):
        over_the_line = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(rate * 1.06, place, f"{rate:.2g}", va="center", fontsize=9, bbox=over_the_line)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="GB of weights a second (log); dashed: what memory gives", title=title)
    axes.set_xlim(min(rates) / 2, max([*rates, bandwidth / 1e9]) * 2)
    share = 1e9 * max(rates) / bandwidth
    text = "; ".join(f"{name} {rate:.3g} GB/s" for name, rate in zip(seconds, rates, strict=True))
    return (
        figure,
        f"{text}; the best reaches {share:.2f} of memory.",
    )


@style.figure_function
def floor(name: str, shape: tuple[int, int], device: Device, tokens: int = 1, numbers: str = "fp16"):
    """Least time of a product by tokens, for F16 and for `name`, on a device. Returns (Figure, text).

    Bytes: everything read once, outputs written once, activations of 16 bits. Arithmetic in `numbers`.
    """
    counts = 2 ** np.arange(0, 11)
    figure, axes = style.subplots(width=7.2, height=3.2)
    for kind, line, colour in (("F16", "--", style.GREY), (name, "-", style.BLUE)):
        times = [least(kind, shape, device, int(m), numbers)[0] for m in counts]
        axes.plot(counts, 1e6 * np.array(times), line, color=colour, label=kind)
    seconds, bound = least(name, shape, device, tokens, numbers)
    dense, _ = least("F16", shape, device, tokens, numbers)
    axes.plot([tokens], [1e6 * seconds], "o", color=style.VERMILION, markersize=8)
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="least time, µs", title=f"{shape[0]} x {shape[1]}")
    axes.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
    low, high = axes.get_ylim()
    ticks = [at for at in (m * 10**e for e in range(-2, 6) for m in (1, 2, 5)) if low <= at <= high]
    axes.set_yticks(ticks, [f"{at:g}" for at in ticks])
    axes.minorticks_off()
    axes.legend()
    text = f"{device.title}, {tokens} tokens: {name} at least {1e6 * seconds:.2f} µs, bound by {bound}; F16 "
    return figure, text + f"{1e6 * dense:.2f} µs, {dense / seconds:.2f} times as long."


def least(name: str, shape: tuple[int, int], device: Device, tokens: int, numbers: str = "fp16") -> tuple[float, str]:
    """Seconds that a product takes at least, and what binds it."""
    need = ops.traffic("matmul", shape, name, m=tokens, activation_bytes=2)
    memory, arithmetic = need.bytes / device.bandwidth, need.flops / device.rate(numbers)
    return max((memory, "bandwidth"), (arithmetic, "arithmetic"))


@style.figure_function
def against_ggml(table: Table, operations: tuple[str, ...] = ("quantize", "dequantize", "matmul")):
    """Recorded speed of the Numba paths over ggml's own code, by format and operation. Returns (Figure, text)."""
    figure, axes = style.subplots(1, len(operations), width=8.6, height=4.2, left=0.85, across=0.25, sharey=True)
    names = [name for name in dict.fromkeys(table.column("format")) if _ratios(table, operations[0]).get(name)]
    parts = []
    for place, (operation, panel) in enumerate(zip(operations, axes, strict=True)):
        ratios = _ratios(table, operation)
        shown = [name for name in names if name in ratios]
        values = [ratios[name] for name in shown]
        panel.barh([names.index(name) for name in shown], values, color=style.BLUE, height=0.65)
        panel.axvline(1, color=style.VERMILION, linewidth=1.2)
        panel.set(title=operation, xlabel="times ggml")
        panel.tick_params(labelleft=place == 0)
        parts.append(f"{operation} {np.median(values):.2f}")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure, f"Median over formats, times ggml's speed: {', '.join(parts)}."


def _ratios(table: Table, operation: str) -> dict[str, float]:
    """Of each format the first row that has a peer: one thread, and weights in memory where that was measured."""
    cells = zip(table.column("format", operation=operation), table.column("ratio", operation=operation), strict=True)
    return {name: float(cell) for name, cell in reversed(list(cells)) if cell}


@style.figure_function
def ladder(table: Table):
    """The recorded rungs of a CUDA kernel: time and floor. Returns (Figure, text)."""
    names = [f"{what} · {shape}, {tokens} tokens" for what, shape, tokens, *_ in table.rows]
    times, floors = ([float(cell) for cell in table.column(name)] for name in ("us", "floor"))
    figure, axes = style.subplots(width=8.6, height=0.95 + 0.3 * len(names), left=3.4, right=0.7)
    axes.barh(names, times, color=style.BLUE, height=0.65, label="measured")
    axes.plot(floors, range(len(names)), "|", color=style.VERMILION, markersize=13, markeredgewidth=2.5, label="floor")
    for place, value in enumerate(times):
        axes.text(value * 1.05, place, f"{value:.1f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="µs (log)")
    axes.set_xlim(min(floors) / 1.5, max(times) * 1.6)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=2)
    best = max(range(len(times)), key=lambda i: floors[i] / times[i])
    return figure, f"{len(names)} rungs; the nearest to its floor is {names[best]}: {times[best]} of {floors[best]} µs."
