"""Notebook 00, the start: what each bit buys; a training run on frozen 4-bit weights."""

from matplotlib.figure import Figure

from refquant.figures import style


@style.figure_function
def frontier(lines) -> Figure:
    """Perplexity (log) against bits a weight of the lines of `compare.Table`; the first is the unquantized model."""
    base, *lines = lines
    figure, axes = style.subplots(width=8.0, height=3.8, right=2.0)
    axes.axhline(base.perplexity, color=style.GREY, linestyle="--", linewidth=1, label="16 bits, as trained")
    methods = list(dict.fromkeys(line.method for line in lines))
    for method, marker, colour in zip(methods, style.MARKERS, style.COLOURS, strict=False):
        mine = [line for line in lines if line.method == method]
        axes.errorbar(
            [line.bits_per_weight for line in mine],
            [line.perplexity for line in mine],
            yerr=[line.perplexity_change_stderr for line in mine],
            fmt=marker,
            color=colour,
            capsize=3,
            label=method,
        )
    axes.set_yscale("log")
    style.plain_log(axes.yaxis, (1, 1.2, 1.5, 2, 3, 5, 7, 9))
    axes.set(xlabel="stored bits a weight", ylabel="perplexity (lower is better)", title="What each bit buys")
    axes.grid(True, which="both")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
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
