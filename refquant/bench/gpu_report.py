"""What `refquant bench gpu` measured, as the tables of kernels/README.md and as a roofline picture."""

import subprocess

MARK = "<!-- measured on a GPU -->"
TITLES = {
    "ladder": "Rungs: int4-g128, one idea each",
    "vectors": "One token, int4-g128",
    "tokens": "More tokens, 8192 x 28672, int4-g128",
    "formats": "One token, 4096 x 14336, every format",
    "dequantize": "dequantize to float32, 4096 x 14336",
    "decode": "Decode: one token of a Llama-3-8B-shaped model, 256 tokens in the cache",
    "launches": "A launch from Python, by the clock: three arguments, checked",
    "encoders": "quantize, 4096 x 4096, and the rungs of Q4_K, IQ4_XS, int4-g128",
    "methods": "GPTQ with the Hessian given, AWQ's search, LLM.int8's product: by the clock",
}


def driver_version() -> str:
    """The NVIDIA driver's version."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def markdown(result: dict) -> str:
    """Return the GPU part of kernels/README.md."""
    bandwidth, rows = result["read_bandwidth"], result["rows"]
    lines = [
        MARK,
        "",
        "# On a GPU",
        "",
        "Written by `refquant bench gpu`; not edited by hand. "
        f"{result['device']}, driver {result['driver']}, torch {result['torch']}, NVRTC {result['compiler']}, "
        f"{result['date']}; it reads {bandwidth / 1e9:.0f} GB/s. Medians of {result['runs']} replays of a CUDA graph, "
        "the weights rotated beyond the L2 cache, times in us. GB/s: the least bytes that the operation must move, per "
        "second; floor: those bytes at the bandwidth read. float16: cuBLAS; torch int4: `_weight_int4pack_mm`, "
        "groups of 128. [roofline.png](roofline.png) is drawn from the same run.",
    ]
    for table, title in TITLES.items():
        mine = [row for row in rows if row["table"] == table]
        if mine:
            runs = mine[0].get("runs", result["runs"])  # rows of another call keep their own number
            note = f" (medians of {runs})" if runs != result["runs"] else ""
            lines += ["", f"## {title}{note}", "", *_table(table, mine, bandwidth)]
    lines += ["", "Sources measured (SHA-256 of each file with its headers, comments left out):", ""]
    lines += [f"- `{name}` {digest[:16]}" for name, digest in result["sources"].items()]
    return "\n".join([*lines, ""])


def _table(table: str, rows: list[dict], bandwidth: float):
    if table == "decode":
        yield from _decode(rows, bandwidth)
        return
    peers = table in ("vectors", "tokens")
    header = ["what", "n, k", "tokens", "us", "floor", "GB/s", "of the bandwidth"]
    header += ["float16", "torch int4", "float16 / ours"] if peers else []
    header += ["G weights/s"] if table == "encoders" else []
    yield "| " + " | ".join(header) + " |"
    yield "|---|---|" + "---:|" * (len(header) - 2)
    for row in rows:
        rate = row["bytes"] / row["us"] * 1e6
        cells = [row["name"], f"{row['n']}, {row['k']}", str(row["tokens"]), f"{row['us']:.1f}"]
        cells += [f"{row['bytes'] / bandwidth * 1e6:.1f}", f"{rate / 1e9:.0f}", f"{rate / bandwidth:.0%}"]
        if peers:
            cells += [f"{row['cublas']:.1f}", f"{row['torch_int4']:.1f}", f"{row['cublas'] / row['us']:.2f}"]
        if table == "encoders":
            cells += [f"{row['n'] * row['k'] / row['us'] / 1000:.1f}"]
        yield "| " + " | ".join(cells) + " |"


def _decode(rows: list[dict], bandwidth: float):
    """Measured and predicted: bytes / bandwidth, as `bandwidth.roofline` has it; the sum of parts measured alone."""
    yield (
        "Predicted: from the bytes at the bandwidth read alone; and from parts, each measured alone: the four products "
        "of a layer at their sizes, what lies between them, and a model without layers (embedding, head, next token). "
        "The bytes alone are a floor: what each launch takes before it reads is not in them."
    )
    yield ""
    header = ["weights", "us a token", "tokens/s", "against float16", "GB a token", "from bytes, us", "measured / it"]
    yield "| " + " | ".join([*header, "against float16", "from parts, us", "measured / it"]) + " |"
    yield "|---|" + "---:|" * 9
    first = rows[0]
    for row in rows:
        cells = [row["name"], f"{row['us']:.0f}", f"{1e6 / row['us']:.0f}", f"{first['us'] / row['us']:.2f}"]
        floor = row["bytes"] / bandwidth * 1e6
        cells += [f"{row['bytes'] / 1e9:.2f}", f"{floor:.0f}", f"{row['us'] / floor:.2f}"]
        cells += [
            f"{first['bytes'] / row['bytes']:.2f}",
            f"{row['predicted']:.0f}",
            f"{row['us'] / row['predicted']:.2f}",
        ]
        yield "| " + " | ".join(cells) + " |"
    yield ""
    yield "Parts, us: " + "; ".join(
        f"{row['name']}: {' + '.join(f'{us:.1f}' for us in row['parts']['products'])} the products, "
        f"{row['parts']['between']:.1f} between them, {row['parts']['ends']:.0f} without layers"
        for row in rows
    )


def without_gpu_part(text: str) -> str:
    """Return what is before the GPU part of a README."""
    return text.split(MARK)[0].rstrip("\n") + "\n" if text.split(MARK)[0].strip() else ""


def gpu_part(text: str) -> str:
    """Return the GPU part of a README, or "" where it has none."""
    return MARK + text.split(MARK)[1] if MARK in text else ""


def renew(text: str, result: dict) -> str:
    """Replace the GPU part of a README, or append it."""
    before = without_gpu_part(text)
    return (before + "\n" if before else "") + markdown(result)


def draw(result: dict, path: str) -> None:
    """Draw the roofline of products with 1 to 128 tokens: measured, and what memory and arithmetic allow."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [row for row in result["rows"] if row["table"] == "tokens"]
    bandwidth, peak = result["read_bandwidth"] / 1e12, 989.0  # TB/s; TFLOP/s of an H100's datasheet, dense float16
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    ridge = peak / bandwidth
    axes.plot([1, ridge, 2000], [bandwidth, peak, peak], color="black", linewidth=1)
    axes.annotate(f"{bandwidth * 1000:.0f} GB/s", (2, 2.3 * bandwidth), rotation=38, fontsize=9)
    axes.annotate(f"{peak:.0f} TFLOP/s (datasheet)", (ridge, peak * 1.1), fontsize=9)
    series = {"us": ("int4-g128, ours", "o", "#0072b2"), "torch_int4": ("int4-g128, torch", "s", "#d55e00")}
    series["cublas"] = ("float16, cuBLAS", "^", "#009e73")
    for key, (label, marker, color) in series.items():
        flops = [2 * row["tokens"] * row["n"] * row["k"] for row in rows]
        moved = [2 * row["n"] * row["k"] if key == "cublas" else row["bytes"] for row in rows]
        x, y = (
            [f / b for f, b in zip(flops, moved, strict=True)],
            [f / row[key] / 1e6 for f, row in zip(flops, rows, strict=True)],
        )
        axes.plot(x, y, marker=marker, color=color, label=label, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TFLOP/s")
    axes.set_title(f"y = W x, 8192 x 28672, 1 to 128 tokens; {result['device']}", fontsize=10)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
