"""Notebook 00, the start: what each bit buys; a training run on frozen 4-bit weights."""

from itertools import cycle

from matplotlib.figure import Figure

from refquant.figures import style


@style.figure_function
def frontier(table) -> Figure:
    """Perplexity (log) against bits a weight of a `compare.Table`, whose first line is the unquantized model.

    The bars are the standard errors of the change.
    """
    base, *lines = table.lines
    figure, axes = style.subplots(width=8.0, height=4.2)
    axes.axhline(base.perplexity, color=style.GREY, linestyle="--", linewidth=1, label=base.label)
    methods = list(dict.fromkeys(line.method for line in lines))
    for method, marker, colour in zip(methods, cycle(style.MARKERS), cycle(style.COLOURS), strict=False):
        mine = [line for line in lines if line.method == method]
        axes.errorbar(
            [line.bits_per_weight for line in mine],
            [line.perplexity for line in mine],
            yerr=[line.perplexity_change_stderr for line in mine],
            fmt=marker,
            color=colour,
            capsize=3,
            label=mine[0].label.split()[0].rstrip(","),
        )
    axes.set_yscale("log")
    style.plain_log(axes.yaxis, (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8))
    axes.set(xlabel="stored bits a weight, scales and zero-points included", title=f"{table.model}: what each bit buys")
    axes.set_ylabel(f"perplexity, {table.protocol} protocol")
    axes.grid(True, which="both")
    axes.legend(loc="upper right", frameon=True, framealpha=1, edgecolor="white")
    return figure


@style.figure_function
def adapter_training(losses: list[float]) -> Figure:
    """The loss of a LoRA adapter on a frozen, quantized layer, step by step."""
    figure, axes = style.subplots(width=6.4, height=2.6)
    axes.plot([1000 * loss for loss in losses], color=style.BLUE)
    axes.set_ylim(0, 1050 * max(losses))
    axes.set(xlabel="training step", ylabel="squared error, 10⁻³", title="Only the adapter learns")
    axes.grid(True)
    return figure
