"""Notebook 01, bandwidth: the roofline with a step on it, measured products beside predicted ones, the lost factor."""

import numpy as np
from matplotlib.figure import Figure

from refquant.bandwidth import roofline as model
from refquant.bandwidth import work as steps
from refquant.bandwidth.devices import Device
from refquant.bandwidth.units import show_bytes
from refquant.bandwidth.weights import Weights
from refquant.figures import style

PARTS = {
    "weights": lambda w: w.weight_bytes + w.embedding_bytes,
    "KV cache": lambda w: w.cache_read + w.cache_written,
    "activations": lambda w: w.activation_bytes,
}


@style.figure_function
def roofline(weights: Weights, device: Device, batch: int = 1, context: int = 1024):
    """A decode step on a device's roofline, and the seconds of its parts.

    Returns (Figure, text); the text states bytes, intensity, ridge, what binds, and the tokens per second at best.
    """
    work = steps.decode_step(weights, context, batch)
    time = model.step_time(work, device)
    rate = device.rates.get("fp16") or device.rates["fp32"]
    ridge = rate / device.bandwidth
    figure, (left, right) = style.subplots(1, 2, width=8.8, height=3.3, width_ratios=(3, 2), across=1.4)
    x = np.array([0.25, ridge, 4096])
    left.plot(x, np.minimum(x * device.bandwidth, rate) / 1e12, color=style.BLACK)
    left.axvline(ridge, color=style.GREY, linestyle=":", linewidth=1)
    reached = work.flops / time.seconds / 1e12
    left.plot(work.intensity, reached, "D", color=style.VERMILION, markersize=9, label=f"decode, batch {batch}")
    prompt = steps.prefill(weights, 1024)
    left.plot(
        prompt.intensity,
        prompt.flops / model.step_time(prompt, device).seconds / 1e12,
        "s",
        color=style.BLUE,
        label="prefill of 1024 tokens",
    )
    left.set_xscale("log", base=2)
    left.set_yscale("log")
    left.set_xlim(0.25, 4096)
    left.set_xticks([1, 8, 64, 512, 4096], ["1", "8", "64", "512", "4096"])
    left.minorticks_off()
    left.set(xlabel="operations for each byte moved", ylabel="10¹² operations a second", title=device.title)
    left.legend(loc="lower right", frameon=True, framealpha=1, edgecolor="white")  # before the ridge's line
    names = [*PARTS, "arithmetic", "decoding codes"]
    seconds = [part(work) / device.bandwidth for part in PARTS.values()] + [time.arithmetic or 0, time.decoding or 0]
    colours = [style.BLUE] * len(PARTS) + [style.ORANGE] * 2
    right.barh(names, [1000 * s for s in seconds], color=colours)
    right.invert_yaxis()
    right.set(xlabel="milliseconds a step", title="Reading, or arithmetic")
    text = (
        f"{weights.shape.name} as {weights.storage} on {device.title}, batch {batch}, context {context}: a step "
        f"moves {show_bytes(work.bytes)} and does {work.intensity:.1f} operations a byte (ridge {ridge:.0f}). Bound by "
        f"{time.bound}; at best {time.tokens_per_second:.0f} tokens a second."
    )
    return figure, text


@style.figure_function
def measured(names: list[str], predicted: list[float], seconds: list[tuple[float, float, float]]) -> Figure:
    """Seconds of a product by format: the floor bytes / bandwidth, and the measured median with its quartiles."""
    figure, axes = style.subplots(width=7.2, height=3.1)
    at = np.arange(len(names))
    low, middle, high = 1000 * np.array(seconds).T
    axes.bar(at - 0.2, 1000 * np.array(predicted), 0.38, color=style.SKY, label="floor: bytes / read bandwidth")
    spread = np.array([middle - low, high - middle])
    axes.bar(at + 0.2, middle, 0.38, yerr=spread, capsize=3, color=style.BLUE, label="measured: median, quartiles")
    axes.set_xticks(at, names)
    axes.set(ylabel="milliseconds", title="One token through one matrix")
    axes.legend()
    return figure


@style.figure_function
def account(lines) -> Figure:
    """The lines of `bandwidth.speedup.account`: the ratio that is left with one more fact counted each time."""
    figure, axes = style.subplots(width=8.2, height=3.2, left=3.2)
    names = [line.what for line in lines]
    axes.barh(names, [line.ratio for line in lines], color=[style.SKY, *[style.BLUE] * (len(lines) - 1)])
    for row, line in enumerate(lines):
        axes.text(line.ratio - 0.05, row, f"{line.ratio:.2f}", ha="right", va="center", color="white", weight="bold")
    axes.invert_yaxis()
    axes.set(xlabel="times as fast as 16 bits")
    axes.set_title("Where the factor goes", loc="left")
    axes.texts[0].set_color("black")
    return figure


@style.figure_function
def speedup_over(context, ratios: dict[str, list[float]], label: str) -> Figure:
    """Ratio of decode times against the tokens of context (log), a line for each batch."""
    figure, axes = style.subplots(width=7.2, height=3.1)
    for (name, values), marker, colour in zip(ratios.items(), style.MARKERS, style.COLOURS, strict=False):
        axes.plot(context, values, f"-{marker}", color=colour, label=name, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_xticks(context, [str(c) for c in context])
    axes.set_ylim(0, 4.2)
    axes.axhline(4, color=style.GREY, linestyle="--", linewidth=1)
    axes.set(xlabel="tokens of context in each sequence", ylabel="times as fast as 16 bits", title=label)
    axes.grid(True)
    axes.legend()
    return figure
