"""Notebook 05, k-quants: the bits of a block, the search for a scale, mixes as a map, the importance matrix."""

import functools

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from refquant import inspect_block
from refquant.figures import style
from refquant.ggml_types import ggml_type
from refquant.methods import mixes
from refquant.methods.kquants.k import root_mean_square
from refquant.methods.kquants.scales import scale_and_min
from refquant.methods.mix_rules import role_of

PART_COLOURS = {
    "codes": style.VERMILION,
    "scales": style.SKY,
    "mins": style.GREEN,
    "d": style.ORANGE,
    "e": style.ORANGE,
    "dmin": style.PURPLE,
    "m": style.PURPLE,
}
BYTES_A_ROW = 16


@style.figure_function
def block_bits(block: np.ndarray, name: str, i: int):
    """The bits of a block, uint8 [bytes], with those of weight `i` coloured by the number that they belong to.

    Returns (Figure, text); the text states the arithmetic.
    """
    found = inspect_block.weight(block, name, i)
    size = len(block)
    rows = -(-size // BYTES_A_ROW)
    owner = np.zeros(8 * BYTES_A_ROW * rows, int)
    owner[8 * size :] = -1
    for number, part in enumerate(found.parts, 1):
        owner[list(part.bits)] = number
    # Bit 7 of each byte stands to the left, as it is written.
    shown = owner.reshape(rows, BYTES_A_ROW, 8)[:, :, ::-1].reshape(rows, -1)
    colours = ["white", "0.93", *(PART_COLOURS[part.field] for part in found.parts)]
    figure, axes = style.subplots(width=8.6, height=1.35 + 0.19 * rows, left=0.55, bottom=0.75, top=0.4)
    axes.imshow(shown, cmap=ListedColormap(colours), vmin=-1, vmax=len(found.parts), aspect="auto")
    axes.vlines(np.arange(8, 8 * BYTES_A_ROW, 8) - 0.5, -0.5, rows - 0.5, color="0.6", linewidth=0.8)
    axes.hlines(np.arange(1, rows) - 0.5, -0.5, 8 * BYTES_A_ROW - 0.5, color="white", linewidth=1.5)
    axes.set_xticks(8 * np.arange(BYTES_A_ROW) + 3.5, [f"+{at}" for at in range(BYTES_A_ROW)])
    step = max(1, rows // 7)
    axes.set_yticks(np.arange(0, rows, step), BYTES_A_ROW * np.arange(0, rows, step))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(ylabel="first byte", title=f"{name}: {size} bytes; the bits that weight {i} is made of")
    handles = [Rectangle((0, 0), 1, 1, color=PART_COLOURS[part.field]) for part in found.parts]
    labels = [f"{part.label} ({len(part.bits)} bits)" for part in found.parts]
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.35 / rows - 0.1), ncols=len(labels))
    return figure, f"Weight {i} of the block: {'; '.join(found.steps)}."


def kept(x: np.ndarray, trials: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What Q4_K's search holds after its first guess and `trials` trials (0 to 21) on sub-blocks `x` [32, count].

    Codes [32, count], scales, minima and weighted squared errors [count], before the scales are rounded to 6 bits.
    """
    weight = root_mean_square(x) + np.abs(x)
    with np.errstate(all="ignore"):
        codes, scale, low = scale_and_min(x, weight, 15, first=-1.0, step=0.1, steps=trials - 1)
    return codes, scale, low, np.sum(weight * (scale * codes + low - x) ** 2, axis=0, dtype=np.float64)


@functools.lru_cache(64)
def _history(x: bytes) -> list:
    """`kept` after 0 to 21 trials: all that the slider shows of a sub-block."""
    return [kept(np.frombuffer(x, np.float32)[:, None], number) for number in range(22)]


@style.figure_function
def search(x: np.ndarray, trials: int):
    """The levels that Q4_K's search has for a sub-block `x` [32] after so many trials, and the error trial by trial.

    Returns (Figure, text).
    """
    held = _history(np.asarray(x, np.float32).tobytes())[: trials + 1]
    errors = [float(error[0]) for *_, error in held]
    codes, scale, low, error = (float(value[0]) if value.ndim == 1 else value[:, 0] for value in held[-1])
    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.2, width_ratios=(3, 2))
    left.hlines(low + scale * np.arange(16), -0.5, 31.5, color=style.ORANGE, linewidth=0.9, label="levels")
    left.vlines(np.arange(32), low + scale * codes, x, color=style.VERMILION, linewidth=1.2)
    left.plot(x, "o", color=style.BLUE, markersize=4, label="weights")
    left.set(xlabel="weight of the sub-block", ylabel="value", title=f"After {trials} trials")
    left.margins(y=0.2)
    left.legend(loc="upper left", ncols=2)
    right.step(range(trials + 1), np.array(errors) / errors[0], where="post", color=style.BLUE)
    right.plot([trials], [error / errors[0]], "o", color=style.VERMILION)
    right.set(xlabel="trials", ylabel="weighted error / first guess", title="The best so far", xlim=(-0.5, 21.5))
    right.set_ylim(0, 1.08)
    text = f"After {trials} trials: scale {scale:.6f}, minimum {low:.6f}, {100 * error / errors[0]:.1f} % of the first "
    return figure, text + "guess's weighted squared error."


@style.figure_function
def mix_map(plan: mixes.Plan, title: str = ""):
    """Bits per weight of every matrix of a `mixes.Plan`: layers across, roles down. Returns (Figure, text)."""
    matrices = [choice for choice in plan.choices if choice.type not in mixes.FLOATS]
    layered = [choice for choice in matrices if choice.name.startswith("blk.")]
    roles = list(dict.fromkeys(role_of(choice.name) for choice in layered))
    layers = 1 + max(int(choice.name.split(".")[1]) for choice in layered)
    types = sorted({choice.type for choice in matrices}, key=lambda name: ggml_type(name).bits_per_weight)
    grid = np.full((len(roles), layers), np.nan)
    for choice in layered:
        grid[roles.index(role_of(choice.name)), int(choice.name.split(".")[1])] = types.index(choice.type)
    colours = dict(zip(types, _spread(len(types)), strict=True))
    others = [choice for choice in matrices if not choice.name.startswith("blk.")]

    figure, axes = style.subplots(width=8.4, height=1.55 + 0.28 * len(roles), left=1.15, bottom=0.9)
    axes.imshow(grid, cmap=ListedColormap(list(colours.values())), vmin=0, vmax=max(len(types) - 1, 1), aspect="auto")
    axes.set_yticks(range(len(roles)), roles)
    axes.set_xticks(range(0, layers, 1 if layers <= 16 else 4))
    axes.hlines(np.arange(1, len(roles)) - 0.5, -0.5, layers - 0.5, color="white", linewidth=2)
    axes.vlines(np.arange(1, layers) - 0.5, -0.5, len(roles) - 0.5, color="white", linewidth=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xlabel="layer", title=f"{title}{plan.mix}: {plan.bits_per_weight:.3f} bits a weight over the whole model")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    labels = [f"{name} ({ggml_type(name).bits_per_weight:g} bits)" for name in colours]
    axes.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.45, -0.5 / (0.28 * len(roles))), ncols=len(labels)
    )
    raised = [choice.type for choice in layered].count(types[-1])
    ends = ", ".join(f"{choice.name.removesuffix('.weight')} {choice.type}" for choice in others)
    text = (
        f"{plan.mix}: {plan.bits_per_weight:.4f} bits a weight; {raised} of {len(layered)} matrices of the layers in "
    )
    return figure, text + f"{types[-1]}; {ends}."


def _spread(count: int) -> list:
    """So many colours of the sequential map, dark for few bits; none so dark or bright that a grid line is lost."""
    return [matplotlib.colormaps[style.SEQUENTIAL](at) for at in np.linspace(0.25, 0.9, count)]


@style.figure_function
def importance(errors: dict[str, tuple[list[float], list[float]]]):
    """Output errors of a model's matrices without and with an importance matrix: {format: (without, with)}.

    Returns (Figure, text); a point below the line gained.
    """
    figure, axes = style.subplots(width=4.8, height=4.2)
    parts = []
    for (name, (without, weighted)), marker, colour in zip(errors.items(), style.MARKERS, style.COLOURS, strict=False):
        axes.plot(without, weighted, marker, color=colour, markersize=5, label=name, fillstyle="none")
        gain = 1 - np.median(np.array(weighted) / np.array(without))
        parts.append(f"{name}: {100 * gain:.0f} % less output error in the median matrix")
    every = np.concatenate([np.concatenate(pair) for pair in errors.values()])
    ends = every.min() * 0.8, every.max() * 1.25
    axes.plot(ends, ends, color=style.GREY, linewidth=1)
    axes.text(ends[1] * 0.8, ends[1] * 0.95, "no gain", ha="right", va="bottom", fontsize=9, color=style.GREY)
    axes.set(xscale="log", yscale="log", xlabel="output error, plain", ylabel="output error, with importance")
    axes.legend(loc="lower right")
    return figure, "; ".join(parts) + "."
