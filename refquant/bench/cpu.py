"""`refquant bench cpu`: every Numba kernel against ggml and torch where they are installed, and the NumPy reference.

Runs are interleaved: ours, theirs, ours, theirs, so that whatever else the machine does meets both; the median counts,
and the quartiles say how far to trust it. Matrices of the products are larger than the cache. All on one thread unless
`--threads` says otherwise; ggml's loops always run on one.
"""

import json
import platform
import time
from pathlib import Path

import numpy as np

import refquant as rq
from refquant import ops
from refquant.bench import gpu_report, peers
from refquant.quantized import Quantized

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
FORMATS = (*BLOCKS, "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16", "int4-g128", "int8-row")
WITHOUT_IMPORTANCE = ("Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16")
SHAPE = (256, 4096)  # of what is quantized and decoded
WIDTH = 4096


def add_arguments(parser) -> None:
    """Add the options of `refquant bench cpu`."""
    parser.add_argument("--formats", default=",".join(FORMATS), help="comma-separated (default: all)")
    parser.add_argument("--operations", default="quantize,importance,dequantize,matmul,matmul_int8,gptq")
    parser.add_argument("--megabytes", type=int, default=128, help="of the matrix of a product (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="of each, interleaved (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--reference", action="store_true", help="time the NumPy reference, too (slow)")
    parser.add_argument("--json", metavar="FILE", help="write what was measured, and on which machine")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as kernels/README.md has it")


def interleave(functions: dict, runs: int) -> dict:
    """Seconds of each function by name: quartiles of `runs`, taken in turn, after one that is not counted."""
    seconds = {name: [] for name in functions}
    for turn in range(runs + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))] for name, values in seconds.items()}


def read_bandwidth(megabytes: int = 256, runs: int = 5) -> float:
    """Bytes a second at which one core reads memory in order: the best of some sums of uint64."""
    data = np.ones(megabytes << 17, np.uint64)
    times = interleave({"read": lambda: np.bitwise_or.reduce(data)}, runs)
    return data.nbytes / times["read"][0]


def cases(operation: str, name: str, args):
    """Functions to time by name, the weights that each handles, and the least bytes it must move; None if not done."""
    rng = np.random.default_rng(0)
    block, has_ggml = name in peers.DOT or name in ("F16", "BF16"), peers.ggml() is not None
    if operation == "importance" and (not block or name in WITHOUT_IMPORTANCE):
        return None
    k = WIDTH
    w = (rng.standard_normal(SHAPE) * 0.02).astype(np.float32)
    if operation in ("quantize", "importance"):
        importance = rng.chisquare(1, k).astype(np.float32) if operation == "importance" else None
        functions = {"numba": lambda: rq.quantize(w, name, importance=importance, backend="numba")}
        if block and has_ggml:
            functions["ggml"] = peers.ggml_quantize(w, name, importance)[0]
        if args.reference:
            functions["numpy"] = lambda: rq.quantize(w, name, importance=importance)
        return functions, w.size, ops.traffic("quantize", SHAPE, name).bytes
    q = rq.quantize(w, name, backend="numba")
    if operation == "dequantize":
        functions = {"numba": lambda: rq.dequantize(q, backend="numba")}
        if block and has_ggml:
            functions["ggml"] = peers.ggml_dequantize(q.arrays["blocks"], name, SHAPE)[0]
        if args.reference:
            functions["numpy"] = lambda: rq.dequantize(q)
        return functions, w.size, ops.traffic("dequantize", SHAPE, name).bytes
    if operation in ("matmul", "matmul_int8"):
        return _products(operation, name, q, args.megabytes, rng)
    return None


def _products(operation, name, q, megabytes, rng):
    """Multiply one token by a matrix of so many megabytes, made of copies of `q`."""
    if operation == "matmul_int8" and name not in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
        return None
    ops.load_backend("numba")
    copies = max(1, (megabytes << 20) // q.nbytes)
    arrays = {field: np.tile(array, (copies, 1)) for field, array in q.arrays.items()}
    large, x = Quantized(name, (SHAPE[0] * copies, WIDTH), arrays), rng.standard_normal(WIDTH).astype(np.float32)
    op = ops.find_op(operation, rq.quantized.find_format(name).family)
    functions = {"numba": lambda: op(x, large, backend="numba")}
    if name in peers.DOT and peers.ggml() is not None:
        functions["ggml"] = peers.ggml_matvec(x, arrays["blocks"], name)[0]
    if name == "int4-g128":
        fields = ops.unpack(large)
        numbers = (fields["codes"], fields["scales"].astype(np.float32), fields["zeros"].astype(np.float32))
        functions["torch"] = peers.torch_int4(x, *numbers, 128)
    return functions, large.shape[0] * WIDTH, ops.traffic("matmul", large.shape, name).bytes


def gptq_case(k: int = 1024):
    """GPTQ of a square layer against the reference."""
    from refquant.methods import gptq

    rng = np.random.default_rng(1)
    w, H = (rng.standard_normal((k, k)) * 0.02).astype(np.float32), gptq.hessian(rng.standard_normal((4 * k, k)))
    functions = {b: (lambda b=b: gptq.quantize(w, H, "int4-g128", backend=b)) for b in ("numba", "numpy")}
    return functions, k * k, 4 * k * k + 4 * k * k


def measure(args, on_row=lambda row: None) -> dict:
    """Time everything that `args` asks for; call `on_row` with each row when it is done."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(args.threads)
    rows = []
    try:
        for operation in args.operations.split(","):
            for name in ["int4-g128"] if operation == "gptq" else args.formats.split(","):
                case = gptq_case() if operation == "gptq" else cases(operation, name, args)
                if case is None:
                    continue
                functions, weights, least = case
                times = interleave(functions, args.runs)
                rows.append({"operation": operation, "format": name, "weights": weights, "bytes": least} | times)
                on_row(rows[-1])
    finally:
        numba.set_num_threads(before)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    machine = {"processor": processor(), "threads": args.threads, "read_bandwidth": read_bandwidth()}
    return {"machine": machine | versions, "date": time.strftime("%Y-%m-%d"), "runs": args.runs, "rows": rows}


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


HEADER = ("operation", "format", "Mweights/s", "GB/s", "spread", "ggml", "ratio", "other peer", "ratio")


def cells(row: dict) -> tuple:
    """What a row of the table shows; all but the first two right-aligned."""
    low, median, high = row["numba"]
    text = [
        f"{row['weights'] / median / 1e6:.0f}",
        f"{row['bytes'] / median / 1e9:.2f}",
        f"{(high - low) / median:.0%}",
    ]
    for peer in ("ggml", next((p for p in ("torch", "numpy") if p in row), "torch")):
        if peer in row:
            theirs = f"{row['weights'] / row[peer][1] / 1e6:.0f}" + ("" if peer == "ggml" else f" {peer}")
            text += [theirs, f"{row[peer][1] / median:.2f}"]
        else:
            text += ["", ""]
    return row["operation"], row["format"], *text


def markdown(result: dict) -> str:
    """Return the table as kernels/README.md has it."""
    machine = result["machine"]
    lines = [
        "# Kernels: measured",
        "",
        "Written by `refquant bench cpu --markdown kernels/README.md`; not edited by hand. Medians of "
        f"{result['runs']} interleaved runs, {machine['threads']} thread(s), {machine['processor']}, which reads "
        f"{machine['read_bandwidth'] / 1e9:.1f} GB/s in order on one core; Numba {machine['numba']}, {result['date']}. "
        "Ratio: ours to theirs, above 1 is faster. GB/s: the least bytes that the operation must move, per second. "
        "Products: one token; ggml's have activations of 8 bits throughout.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|---|" + "---:|" * (len(HEADER) - 2),
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in result["rows"]), ""])


def run(args) -> int:
    """Measure, print each row as it is ready, write what was asked for."""
    widths = (12, 10, 10, 7, 7, 8, 6, 14, 6)

    def line(values):
        left, right = values[:2], values[2:]
        print(*(v.ljust(s) for v, s in zip(left, widths, strict=False)),
              *(v.rjust(s) for v, s in zip(right, widths[2:], strict=False)), flush=True)  # fmt: skip

    line(HEADER)
    result = measure(args, on_row=lambda row: line(cells(row)))
    table = markdown(result)
    if args.markdown and Path(args.markdown).exists():  # what was measured on a GPU stays
        table = "\n".join(filter(None, (table, gpu_report.gpu_part(Path(args.markdown).read_text(encoding="utf-8")))))
    for path, text in ((args.json, json.dumps(result, indent=1) + "\n"), (args.markdown, table)):
        if path:
            part = Path(f"{path}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    return 0
