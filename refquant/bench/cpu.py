"""`refquant bench cpu`: every Numba kernel against ggml and torch where they are installed, and the NumPy reference.

Runs are interleaved: ours, theirs, ours, theirs, so that whatever else the machine does meets both; the median counts,
and the quartiles say how far to trust it. What takes a millisecond gets more runs, half a second's worth. Products are
timed twice: with weights that fit the cache, and with a gigabyte of them, which do not, on one and on more threads; a
large GPTQ on as many as the products get at most. Products of many tokens are timed with 512. Everything else runs on
one thread.
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from refquant.bench import cases, gpu_report, peers, report
from refquant.errors import BadInput


def add_arguments(parser) -> None:
    """Add the options of `refquant bench cpu`."""
    parser.add_argument("--formats", default=",".join(cases.FORMATS), help="comma-separated (default: all)")
    parser.add_argument("--operations", default=",".join(cases.OPERATIONS), help="comma-separated (default: all)")
    parser.add_argument("--cache", type=int, default=8, help="megabytes of a product's small matrix (%(default)s)")
    parser.add_argument("--memory", type=int, default=1024, help="megabytes of the large one, 0 for none (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each, interleaved (default: %(default)s)")
    parser.add_argument("--least", type=float, default=0.5, help="seconds of runs of each, at least (%(default)s)")
    parser.add_argument("--threads", default="1,2", help="of the products (default: %(default)s)")
    parser.add_argument("--seconds", type=float, help="begin nothing new after so long; what is left out is told")
    parser.add_argument("--reference", action="store_true", help="time the NumPy reference, too (slow)")
    parser.add_argument("--from", dest="measured", metavar="FILE", help="measure nothing; take what --json wrote")
    parser.add_argument("--json", metavar="FILE", help="write what was measured, and on which machine")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables as kernels/README.md has them")
    parser.add_argument("--beside", metavar="FILE", help="another machine's --json, whose table comes after this one's")
    parser.add_argument("--picture", metavar="FILE", help="draw the products under the memory's roof (PNG)")


def interleave(functions: dict, runs: int, at_least: float = 0.0) -> dict:
    """Seconds of each function by name: quartiles of `runs`, taken in turn, after one that is not counted.

    There are more runs until they have taken `at_least` so many seconds together.
    """
    seconds, turn, first = {name: [] for name in functions}, 0, time.perf_counter()
    while turn <= runs or time.perf_counter() - first < at_least:
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - began)
        turn += 1
    return {name: [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))] for name, values in seconds.items()}


def read_bandwidth(threads: int = 1, megabytes: int = 256, runs: int = 5) -> float:
    """Bytes a second at which so many cores read memory in order, each its own: the fastest of three ways."""
    from refquant_kernels.cpu.read import combine

    data = [np.ones(megabytes << 18, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        ways = {"integers": lambda a: np.bitwise_or.reduce(a.view(np.uint64)), "products": lambda a: a @ a}
        ways["prefetched"] = lambda a: combine(a.view(np.uint8))
        times = interleave({name: lambda f=f: list(pool.map(f, data)) for name, f in ways.items()}, runs)
    return sum(each.nbytes for each in data) / min(low for low, _, _ in times.values())


@contextmanager
def on_threads(count: int):
    """Numba and torch on so many threads."""
    import numba

    before = numba.get_num_threads()
    if count > numba.config.NUMBA_NUM_THREADS:
        raise BadInput(f"--threads {count}: this machine has {numba.config.NUMBA_NUM_THREADS} (NUMBA_NUM_THREADS)")
    numba.set_num_threads(count)
    if peers.has_torch():
        import torch

        torch.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def compile_one(operation: str, name: str) -> None:
    """Run our own side of a case once, on little data."""
    if operation in cases.METHODS:
        found = [cases.method(operation, cases.METHODS[operation][0], reference=False)]
    elif operation == "prefill":
        found = [cases.prefill(name, height=cases.SHAPE[0])]
    elif operation.startswith("matmul"):
        found = cases.products([operation], name, "cache", 1)
    else:
        found = [cases.conversion(operation, name, reference=False)]
    for case in filter(None, found):
        case.functions["numba"]()


def compile_all(jobs: list[tuple[str, str]]) -> None:
    """Compile in processes beside each other what will be timed; the code kept on disk is then only loaded."""
    with ProcessPoolExecutor(min(8, cores() or 1), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(compile_one, *job) for job in jobs]
        for each in tqdm(waiting, desc="compile", leave=False):
            each.result()


def plan(args) -> list:
    """Functions that each return cases when called, so that one gigabyte is there at a time."""
    operations, formats = args.operations.split(","), args.formats.split(",")
    counts = [int(count) for count in str(args.threads).split(",")]
    steps = []
    for place, megabytes in (("memory", args.memory), ("cache", args.cache)):
        if not megabytes:
            continue
        for name in formats:
            steps.append(lambda f=name, p=place, s=megabytes: cases.products(operations, f, p, s, counts))
        if "matmul" in operations:
            steps.append(lambda p=place, s=megabytes: cases.float32_products(p, s, counts))
    for operation in operations:
        if operation == "prefill":
            for name in formats:
                steps.append(lambda f=name: [cases.prefill(f, t) for t in counts])
        elif operation in cases.METHODS:
            for k in cases.METHODS[operation]:
                threads = max(counts) if k >= cases.LARGE else 1  # of BLAS, which settles it, the environment decides
                steps.append(lambda o=operation, k=k, t=threads: [cases.method(o, k, threads=t)])
        elif not operation.startswith("matmul"):
            for name in formats:
                steps.append(lambda o=operation, f=name: [cases.conversion(o, f, args.reference)])
    return steps


def measure(args, on_row=lambda row: None) -> dict:
    """Time everything that `args` asks for; call `on_row` with each row when it is done."""
    import numba

    began, rows, steps = time.perf_counter(), [], plan(args)
    compile_all([(o, f) for o in args.operations.split(",") for f in args.formats.split(",") if o not in cases.METHODS])
    left_out = 0
    for make in steps:
        if args.seconds and time.perf_counter() - began > args.seconds:
            left_out += 1
            continue
        for case in filter(None, make()):
            with on_threads(case.threads):
                rows.append(case.row() | interleave(case.functions, args.runs, args.least))
            on_row(rows[-1])
    counts = sorted({row["threads"] for row in rows} | {1})
    machine = {"processor": processor(), "features": features(), "cores": cores()}
    machine["read_bandwidth"] = {str(count): read_bandwidth(count) for count in counts}
    versions = {"python": platform.python_version(), "numpy": np.__version__, "numba": numba.__version__}
    return {
        "machine": machine,
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - began),
        "left_out": left_out,
        "runs": args.runs,
        "rows": rows,
    }


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def features() -> list[str]:
    """Of the instruction sets that our kernels look for, those that the processor has."""
    from refquant_kernels.cpu import machine

    return sorted({"avx2", "f16c", "avx512f", "avx512bw", "avx512vnni", "avx512vbmi"} & machine.features())


def run(args: argparse.Namespace) -> int:
    """Measure, print each row as it is ready, write what was asked for."""
    if args.measured:
        result = json.loads(Path(args.measured).read_text(encoding="utf-8"))
    else:
        print(report.line(report.HEADER), flush=True)
        result = measure(args, on_row=lambda row: print(report.line(report.cells(row)), flush=True))
    if result["left_out"]:
        print(f"no time for {result['left_out']} of the measurements (--seconds)")
    others = [json.loads(Path(args.beside).read_text(encoding="utf-8"))] if args.beside else []
    table = report.markdown(result, *others)
    if args.markdown and Path(args.markdown).exists():  # what was measured on a GPU stays
        table = "\n".join(filter(None, (table, gpu_report.gpu_part(Path(args.markdown).read_text(encoding="utf-8")))))
    for path, text in ((args.json, json.dumps(result, indent=1) + "\n"), (args.markdown, table)):
        if path:
            part = Path(f"{path}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    if args.picture:
        report.draw(result, args.picture)
    return 0
