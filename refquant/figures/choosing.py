"""Notebook 09, choosing: a model split between card and main memory, what will do and what will not, stacking."""

import math

import numpy as np

from refquant.bandwidth import cache, choose, serving, shapes, split, stack, weights
from refquant.bandwidth.devices import Device
from refquant.bandwidth.units import show_bytes
from refquant.errors import BadInput
from refquant.figures import style

STORED = (
    ("weights", "weight_bytes", style.BLUE),
    ("KV cache", "cache_bytes", style.ORANGE),
    ("workspace", "workspace_bytes", style.GREY),
)


@style.figure_function
def planned(plan: split.Split):
    """Where a `Split` puts the bytes, and how a decode step spends its time. Returns (Figure, text)."""
    figure, (left, right) = style.subplots(
        1, 2, width=8.4, height=2.3, left=1.2, across=0.5, bottom=0.9, width_ratios=(3, 2)
    )
    sides = (plan.cpu, plan.gpu)
    names = ["main memory", "card"]
    start = np.zeros(2)
    for label, field, colour in STORED:
        sizes = np.array([getattr(side, field) for side in sides]) / 1e9
        left.barh(names, sizes, left=start, color=colour, label=label, height=0.6)
        start += sizes
    left.set(xlabel="GB", title="Bytes")
    left.margins(x=0.06)
    left.legend(loc="upper center", bbox_to_anchor=(0.45, -0.42), ncols=3)
    times = [1e3 * side.seconds for side in sides]
    right.barh(names, times, color=[style.VERMILION, style.GREEN], height=0.6)
    right.set_yticks([])
    right.set(xlabel="ms of a decode step", title="Time")
    text = (
        f"{plan.weights.shape.name} in {plan.weights.storage}: {plan.gpu_layers} of {plan.most_layers} layers on the "
        f"card ({show_bytes(plan.gpu.nbytes)}), {show_bytes(plan.cpu.nbytes)} in main memory; at most "
        f"{plan.tokens_per_second:.1f} tokens/s, {100 * plan.cpu.seconds / plan.seconds:.0f} % of it in main memory."
    )
    return figure, text


@style.figure_function
def refused(problem: str):
    """A figure that says why there is none: the planner's own words. Returns (Figure, text)."""
    figure, axes = style.subplots(width=8.4, height=0.8, bottom=0.1, top=0.1)
    axes.set_axis_off()
    axes.text(0, 0.5, "This plan does not fit.", fontsize=11, fontweight="bold", va="center")
    return figure, problem


def plan(
    model: str, storage: str, gpu: Device, cpu: Device, context: int, layers: int | None, cpu_memory: int | None = None
):
    """`planned`, or `refused` with the reason; `layers` None puts as many on the card as fit."""
    held = weights.store(shapes.find_shape(model), storage)
    most = None if layers is None else min(layers, held.shape.layers + 1)
    try:
        return planned(split.plan_split(held, gpu, cpu, context, gpu_layers=most, cpu_memory=cpu_memory))
    except BadInput as problem:
        return refused(str(problem))


@style.figure_function
def by_layers(plans: list[split.Split]):
    """Predicted tokens per second against the layers on the card. Returns (Figure, text)."""
    figure, axes = style.subplots(width=6.4, height=3.0)
    axes.plot([p.gpu_layers for p in plans], [p.tokens_per_second for p in plans], "o-", color=style.BLUE)
    axes.set(xlabel="layers on the card", ylabel="tokens/s at most", title=f"{plans[0].weights.shape.name}")
    axes.set_ylim(bottom=0)
    first, last = plans[0], plans[-1]
    text = (
        f"{first.tokens_per_second:.1f} tokens/s with {first.gpu_layers} layers on the card, "
        f"{last.tokens_per_second:.1f} with {last.gpu_layers} of {last.most_layers}."
    )
    return figure, text


@style.figure_function
def options(answer: choose.Choice):
    """Every candidate by size and loss: those that will do, and those that will not. Returns (Figure, text)."""
    figure, (left, right) = style.subplots(
        1, 2, width=8.6, height=4.2, left=1.65, across=0.5, width_ratios=(3, 2), sharey=True
    )
    limit = 100 * choose.LOSS[answer.loss]
    shown = sorted((*answer.accepted, *answer.rejected), key=lambda o: (o.total_bytes, o.candidate.label))
    shown = [option for option in shown if option.weight_bytes]
    rows = np.arange(len(shown))
    losses = np.array([100 * o.quality.relative if o.quality else np.nan for o in shown])
    for will_do, colour, label in ((True, style.BLUE, "will do"), (False, "0.75", "rejected")):
        some = np.array([(not option.rejected) == will_do for option in shown])
        left.barh(rows[some], [o.total_bytes / 1e9 for o in np.array(shown)[some]], color=colour, label=label)
        mark, shade = ("o", style.BLUE) if will_do else ("x", style.VERMILION)
        right.plot(np.maximum(losses[some], 0.01), rows[some], mark, color=shade, label=label, clip_on=False)
    largest = max(option.total_bytes for option in shown)
    if answer.memory < 2 * largest:  # beyond, everything fits
        left.axvline(answer.memory / 1e9, color=style.VERMILION, linestyle="--", linewidth=1.4, label="memory")
        largest = max(largest, answer.memory)
    left.set_yticks(rows, [option.candidate.label for option in shown])
    left.invert_yaxis()
    left.set(xlabel="GB: weights, KV cache, workspace", xlim=(0, largest / 1e9 * 1.05))
    left.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="white")  # before the memory's line
    right.set(xscale="log", xlim=(0.01, 100), xlabel="perplexity increase, %")
    right.set_xticks([0.01, 0.1, 1, 10, 100], ["≤0.01", "0.1", "1", "10", "100"])
    right.minorticks_off()
    right.grid(True, axis="x")
    if 0 < limit < math.inf:
        right.axvline(limit, color=style.VERMILION, linestyle=":", linewidth=1.6, label="loss accepted")
    right.tick_params(labelleft=False, left=False)
    if not answer.accepted:
        return figure, f"{answer.shape.name}, {answer.hardware}, loss {answer.loss}: none will do."
    best = answer.accepted[0]
    speed = f", at most {best.tokens_per_second:.0f} tokens/s" if best.tokens_per_second else ""
    text = (
        f"{answer.shape.name}, {answer.hardware}, loss {answer.loss}: take {best.candidate.label}, "
        f"{show_bytes(best.total_bytes)} in all{speed}; {len(answer.accepted)} will do, {len(answer.rejected)} not."
    )
    return figure, text


@style.figure_function
def stacked(found: stack.Gains, title: str = ""):
    """Each technique's gain alone, their product, and what they give together. Returns (Figure, text)."""
    figure, axes = style.subplots(width=7.6, height=2.9, left=1.3, right=0.6)
    names = [*found.alone, "product of these", "all together"]
    values = [*found.alone.values(), found.product, found.actual]
    colours = [style.SKY] * len(found.alone) + [style.ORANGE, style.BLUE]
    axes.barh(names, values, color=colours, height=0.65)
    for place, value in enumerate(values):
        axes.text(value * 1.04, place, f"{value:.1f}x", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="tokens/s over the bare server (log)", title=title)
    axes.set_xlim(1, max(values) * 1.5)
    text = f"The single gains multiply to {found.product:.1f} times; together they give {found.actual:.1f} times."
    return figure, text


@style.figure_function
def paging(shape: str, room: int, reserved: int, block: int = 16):
    """Sequences that fit `room` bytes of KV cache by their mean length: reserved whole, or paged. (Figure, text)."""
    figure, axes = style.subplots(width=6.4, height=3.0)
    lengths = np.unique(np.geomspace(64, reserved, 24).astype(int))
    each = cache.bytes_per_token(shape)
    for label, waste, style_ in (
        (f"paged, blocks of {block}", lambda n: cache.paged_waste(n, block), "-"),
        (f"{reserved} tokens reserved", lambda n: cache.reserved_waste(n, reserved), "--"),
    ):
        fit = [room / (each * n / (1 - waste(n))) for n in lengths]
        axes.plot(lengths, fit, style_, label=label)
    axes.set(xscale="log", yscale="log", xlabel="mean tokens of a sequence", ylabel="sequences that fit")
    axes.set_xticks([64, 256, 1024, reserved], ["64", "256", "1024", str(reserved)])
    axes.minorticks_off()
    axes.legend()
    ratio = (1 - cache.paged_waste(512, block)) / (1 - cache.reserved_waste(512, reserved))
    return figure, f"At 512 tokens a sequence, {ratio:.1f} times as many sequences fit when the cache is paged."


@style.figure_function
def batching(lengths: list[int], acceptance: float = 0.7, draft_cost: float = 0.15):
    """Continuous over static batching by batch size; speculation by drafted tokens. Returns (Figure, text)."""
    figure, (left, right) = style.subplots(1, 2, width=8.4, height=3.0)
    batches = [1, 2, 4, 8, 16, 32, 64]
    gains = [serving.continuous_gain(lengths, batch) for batch in batches]
    left.plot(batches, gains, "o-", color=style.BLUE)
    left.set(xscale="log", xlabel="sequences in a batch", ylabel="times static batching", title="Continuous batching")
    left.set_xticks(batches, batches)
    left.minorticks_off()
    left.set_ylim(bottom=0.9)
    drafts = np.arange(1, 11)
    speeds = {}
    for label, verify, mark in (
        ("bandwidth binds", lambda n: 1.0, "o-"),
        ("arithmetic binds", lambda n: n + 1.0, "s--"),
    ):
        speeds[label] = [serving.speculative_speedup(acceptance, int(n), draft_cost, verify(n)) for n in drafts]
        right.plot(drafts, speeds[label], mark, label=label)
    right.axhline(1, color=style.GREY, linewidth=1)
    right.set(xlabel="drafted tokens", ylabel="times plain decoding", title="Speculation", ylim=(0, None))
    right.legend()
    best = int(drafts[np.argmax(speeds["bandwidth binds"])])
    text = (
        f"Batches of {batches[-1]}: continuous batching gives {gains[-1]:.2f} times static. Speculation: best with "
        f"{best} drafted tokens, {max(speeds['bandwidth binds']):.2f} times, where bandwidth binds; at most "
        f"{max(speeds['arithmetic binds']):.2f} times where arithmetic does."
    )
    return figure, text
