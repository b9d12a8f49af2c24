"""What `refquant bench cpu` measured, as a table and as a picture."""

from pathlib import Path

HEADER = (
    "operation", "format", "weights in", "threads", "Mweights/s", "GB/s", "of memory", "spread", "ggml", "ratio",
    "peer", "ratio",
)  # fmt: skip
WIDTHS = (12, 10, 11, 7, 10, 7, 9, 7, 8, 6, 14, 6)
LEFT = 3  # columns of text


def cells(row: dict) -> tuple:
    """What a row of the table shows; beyond the cache also which part of the speed of a plain reader."""
    low, median, high = row["numba"]
    share = ""
    if "read" in row:
        share = f"{row['bytes'] / median / (row['read_bytes'] / row['read'][1]):.0%}"
    text = [
        str(row["threads"]),
        f"{row['weights'] / median / 1e6:.0f}",
        f"{row['bytes'] / median / 1e9:.2f}",
        share,
        f"{(high - low) / median:.0%}",
    ]
    for peer in ("ggml", next((p for p in ("torch", "numpy") if p in row), "torch")):
        if peer in row:
            theirs = f"{row['weights'] / row[peer][1] / 1e6:.0f}" + ("" if peer == "ggml" else f" {peer}")
            text += [theirs, f"{row[peer][1] / median:.2f}"]
        else:
            text += ["", ""]
    return row["operation"], row["format"], row["place"], *text


def line(values: tuple) -> str:
    """Return a row for the terminal."""
    left = [v.ljust(s) for v, s in zip(values[:LEFT], WIDTHS, strict=False)]
    return " ".join([*left, *(v.rjust(s) for v, s in zip(values[LEFT:], WIDTHS[LEFT:], strict=True))])


MEANING = (
    "Written by `refquant bench cpu --markdown kernels/README.md`; not edited by hand. Ratio: ours to theirs, above "
    "1 is faster. GB/s: the least bytes that the operation must move, per second; of memory: of what a plain reader "
    "of the same weights gets, its runs in between. torch: `mv` in float32 and bfloat16, "
    "`_weight_int4pack_mm_for_cpu` with bfloat16 activations, and the published GPTQ, restated. Products: one "
    "token; ggml's have activations of 8 bits throughout, ours in `matmul` float32; F32 is NumPy's BLAS, on threads "
    "of its own choice. prefill: `matmul` of 512 tokens, beside torch's of float32 weights (1000 Mweights/s are "
    "1.024 TFLOP/s). Spread: between the quartiles. [roofline_cpu.png](roofline_cpu.png): the products beyond the "
    "cache."
)


def read_speeds(result: dict) -> dict[str, float]:
    """Bytes a second by number of threads: the best that reading got, on its own or between the products."""
    speeds = dict(result["machine"]["read_bandwidth"])
    for row in result["rows"]:
        if "read" in row:
            count = str(row["threads"])
            speeds[count] = max(speeds[count], row["read_bytes"] / row["read"][1])
    return speeds


def conditions(result: dict) -> str:
    """Where, with what and when it was measured."""
    machine = result["machine"]
    speeds = " and ".join(f"{value / 1e9:.1f} GB/s on {n}" for n, value in read_speeds(result).items())
    text = (
        f"Medians of at least {result['runs']} interleaved runs on {machine['cores']} cores of {machine['processor']} "
        f"with {', '.join(machine['features'])}, which read memory in order at {speeds} thread(s) at best; Numba "
        f"{result['versions']['numba']}, {result['date']}."
    )
    if "note" in result:
        text += f" {result['note'][0].upper()}{result['note'][1:]}"
    if result["left_out"]:
        text += f" Left out for want of time: {result['left_out']} measurements."
    return text


def table(result: dict) -> list[str]:
    """Lines of Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * LEFT + "---:|" * (len(HEADER) - LEFT)]
    return [*lines, *("| " + " | ".join(cells(row)) + " |" for row in result["rows"]), ""]


def markdown(result: dict, *others: dict) -> str:
    """Return the tables as kernels/README.md has them: of one machine, then of others."""
    lines = ["# Kernels: measured", "", f"{MEANING} {conditions(result)}", "", *table(result)]
    for other in others:
        lines += [f"## The same on {other['machine']['processor']}", "", conditions(other), "", *table(other)]
    return "\n".join(lines)


def draw(result: dict, path: str) -> None:
    """Draw the products beyond the cache: weights a second over bits a weight, under what the memory gives."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if row["operation"].startswith("matmul") and row["place"] == "memory"]
    rows = rows or [row for row in result["rows"] if row["operation"].startswith("matmul")]
    counts = sorted({row["threads"] for row in rows})
    figure, all_axes = pyplot.subplots(
        1,
        max(1, len(counts)),
        figsize=(6.5 * max(1, len(counts)), 5.5),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axes, count in zip(all_axes[0], counts, strict=False):
        bits = np.geomspace(1.5, 40, 50)
        roof = read_speeds(result)[str(count)]
        axes.plot(bits, roof * 8 / bits / 1e9, color="0.3", label=f"memory: {roof / 1e9:.1f} GB/s")
        kinds = (("numba", "matmul", "float32 activations", "o", "#0072B2"),
                 ("numba", "matmul_int8", "8-bit activations", "s", "#D55E00"),
                 ("ggml", "matmul_int8", "ggml, 8-bit activations", "^", "#009E73"))  # fmt: skip
        for who, operation, label, marker, colour in kinds:
            chosen = [r for r in rows if r["threads"] == count and r["operation"] == operation and who in r]
            x = [8 * row["bytes"] / row["weights"] for row in chosen]
            y = [row["weights"] / row[who][1] / 1e9 for row in chosen]
            axes.scatter(x, y, marker=marker, s=28, color=colour, label=label, zorder=3)
            if operation == "matmul_int8" and who == "numba":
                for a, b, row in zip(x, y, chosen, strict=True):
                    axes.annotate(
                        row["format"], (a, b), xytext=(0, 6), textcoords="offset points", fontsize=6, rotation=45
                    )
        axes.set(xscale="log", yscale="log", xlabel="bits a weight that must be read", title=f"{count} thread(s)")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set_xticks([2, 4, 8, 16, 32], minor=False)
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.yaxis.set_minor_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.grid(which="both", alpha=0.25)
        axes.legend(fontsize=8)
    all_axes[0][0].set_ylabel("billion weights a second, one token")
    figure.suptitle(f"Products on {result['machine']['processor']}, {result['date']}")
    part = Path(f"{path}.part")
    try:
        figure.savefig(part, format="png", dpi=130)
        part.replace(path)
    finally:
        pyplot.close(figure)
