"""`refquant bench gpu`: the CUDA kernels against cuBLAS, torch's int4 product and the memory they read.

Times are medians of replays of a CUDA graph that takes the same product of several copies of the weights in turn, more
bytes than the L2 cache holds. Weights are random; their values do not matter to the time, but zeros would.

Tables: ladder (the rungs of a product with one token), vectors (shapes, one token), tokens (1 to 128), formats,
dequantize; decode and launches, which are in `gpu_decode`; encoders and methods, which are in `gpu_quantize`.
"""

import json
import statistics
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import refquant as rq
from refquant import ops
from refquant.bench import gpu_decode, gpu_quantize, gpu_report
from refquant.errors import BackendUnavailable
from refquant.quantized import Quantized, find_format

SHAPES = ((8192, 28672), (28672, 8192), (8192, 8192), (4096, 11008), (4096, 4096))
TOKENS, FORMAT_SHAPE = (1, 2, 4, 8, 16, 32, 64, 128), (4096, 14336)
FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
FORMATS += ("MXFP4", "TQ2_0", "int2-g128", "int3-g128", "int4-g128", "int4-g32-sym", "int8-g128", "nf4", "fp8-e4m3")
SOURCES = ("decode.cu", "decoder.cu", "gemm.cu", "gemm_sm90.cu", "gemv.cu", "gemv_plain.cu", "read.cu")  # measured here
SOURCES += gpu_quantize.SOURCES
ROTATED = 3 << 28  # bytes of the copies together


def add_arguments(parser) -> None:
    """Add the options of `refquant bench gpu`."""
    parser.add_argument(
        "--tables",
        default="ladder,vectors,tokens,formats,dequantize,decode,launches,encoders,methods",
        help="which (default: all)",
    )
    parser.add_argument("--runs", type=int, default=7, help="replays of each graph (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write what was measured, and on which device")
    parser.add_argument("--markdown", metavar="FILE", help="renew the GPU part of kernels/README.md")
    parser.add_argument("--picture", metavar="FILE", help="draw the roofline (PNG)")


class Bench:
    """What all the measurements share: the device, the number of replays."""

    def __init__(self, runs: int):
        ops.load_backend("cuda")
        from refquant_kernels.cuda import launch, products, strips

        self.torch, self.launch, self.products, self.strips = launch.torch(), launch, products, strips
        self.device, self.runs = self.torch.device("cuda", self.torch.cuda.current_device()), runs
        self.rng, self._packed = np.random.default_rng(0), {}

    def microseconds(self, calls) -> float:
        """Of one call, when all are made one after the other: the median over replays."""
        torch, stream = self.torch, self.torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for call in calls:
                    call()
        return self.replays(graph) / len(calls)

    def replays(self, graph) -> float:
        """Microseconds of one replay: the median, after two that are not counted."""
        torch, spent = self.torch, []
        for run in range(self.runs + 2):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if run > 1:
                spent.append(1000 * begin.elapsed_time(end))
        return statistics.median(spent)

    def quantized(self, name: str, n: int, k: int) -> Quantized:
        """Random weights in a format; of the block formats random codes and scales, without a search."""
        item = find_format(name)
        if not item.stream:
            return rq.quantize((self.rng.standard_normal((n, k)) * 0.02).astype(np.float32), name)
        size = item.nbytes((n, k))
        fields = ops.unpack(Quantized.from_bytes(self.rng.integers(0, 256, size, dtype=np.uint8), name, (n, k)))
        for key in fields.keys() & {"d", "dmin", "m"}:
            fields[key] = (self.rng.standard_normal(fields[key].shape) * 0.01).astype(np.float16)
        if "e" in fields:
            fields["e"] = self.rng.integers(110, 125, fields["e"].shape, dtype=np.uint8)
        return ops.pack(fields, name, (n, k))

    def weights(self, name: str, n: int, k: int):
        """Strips of [n, k]: 128 rows, repeated in memory of their own."""
        if (name, k) not in self._packed:
            self._packed[name, k] = self.strips.pack(self.quantized(name, 128, k), self.device)
        few, count = self._packed[name, k], -(-n // 16)
        data = few.data.repeat(-(-count // len(few.data)), 1, 1)[:count].contiguous()
        return self.strips.Strips(data, few.layout, (n, k), None, few.levels)

    def copies(self, make, nbytes: int) -> list:
        """As many of `make()` as exceed the cache."""
        return [make() for _ in range(max(3, ROTATED // nbytes))]

    def product(self, name: str, n: int, k: int, m: int, **choice) -> float:
        """Microseconds of a product in a format."""
        torch = self.torch
        x = torch.randn(m, k, device=self.device).half()
        y = torch.empty(m, n, device=self.device, dtype=torch.half)
        some = self.copies(lambda: self.weights(name, n, k), find_format(name).nbytes((n, k)))
        return self.microseconds([lambda w=w: self.products.multiply(w, x, y, **choice) for w in some])

    def float16(self, n: int, k: int, m: int) -> float:
        """Microseconds of cuBLAS."""
        torch, half = self.torch, {"device": self.device, "dtype": self.torch.half}
        x, y = torch.randn(m, k, **half), torch.empty(m, n, **half)
        some = self.copies(lambda: torch.randn(n, k, **half), 2 * n * k)
        return self.microseconds([lambda w=w: torch.mm(x, w.T, out=y) for w in some])


def torch_int4(b: Bench, n: int, k: int, m: int) -> float:
    """Microseconds of torch's `_weight_int4pack_mm`, groups of 128."""
    torch = b.torch
    x = torch.randn(m, k, device=b.device, dtype=torch.bfloat16)

    def make():
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device=b.device)
        scales = torch.rand(k // 128, n, 2, dtype=torch.bfloat16, device=b.device)
        return torch._convert_weight_to_int4pack(codes, 8), scales

    some = b.copies(make, n * k // 2)
    return b.microseconds([lambda w=w: torch._weight_int4pack_mm(x, w[0], 128, w[1]) for w in some])


def read_bandwidth(b: Bench, nbytes: int = 1 << 32) -> float:
    """Bytes a second that the GPU reads: the best of a few grids."""
    torch = b.torch
    data = torch.randint(-(1 << 62), 1 << 62, (nbytes // 8,), device=b.device)
    out = b.products._nothing(b.device, torch.int32)
    kernel, count = b.launch.load("read.cu", "read_all"), b.launch.properties(b.device.index)[0]
    times = [
        b.microseconds([lambda c=c, t=t: kernel((c * count, 1, 1), (t, 1, 1), data, out, nbytes // 16)])
        for c, t in ((2, 1024), (4, 512), (8, 256), (16, 256))
    ]
    return nbytes / min(times) * 1e6


def _row(table, name, us, n=None, k=None, m=1, nbytes=None, **peers):
    if nbytes is None:
        nbytes = ops.traffic("matmul", (n, k), name.split()[-1], m=m, activation_bytes=2).bytes
    return {"table": table, "name": name, "n": n, "k": k, "tokens": m, "us": us, "bytes": nbytes} | peers


def ladder(b: Bench):
    """The rungs of products, int4-g128."""
    for n, k in ((8192, 28672), (4096, 4096)):
        yield from _plain_rungs(b, n, k)
        yield from _strip_rungs(b, n, k)
    for m in (16, 64, 128):
        yield from _token_rungs(b, 8192, 28672, m)


def _plain_rungs(b: Bench, n: int, k: int):
    """One token, the weights as a file holds them."""
    torch = b.torch
    plain = [torch.from_numpy(a).to(b.device) for a in b.quantized("int4-g128", 128, k).arrays.values()]
    x, y = torch.randn(1, k, device=b.device).half(), torch.empty(1, n, device=b.device)
    some = b.copies(lambda: [a.repeat(n // 128, 1) for a in plain], n * k // 2)
    for rung, grid in (("gemv_v1", n // 128), ("gemv_v2", n // 4)):
        kernel = b.launch.load("gemv_plain.cu", rung, GROUP=128)

        def call(arrays, kernel=kernel, grid=grid):
            kernel((grid, 1, 1), (128, 1, 1), *arrays, x, y, n, k)

        us = b.microseconds([lambda a=a, call=call: call(a) for a in (some[:3] if rung == "gemv_v1" else some)])
        yield _row("ladder", f"{rung} int4-g128", us, n, k)


def _strip_rungs(b: Bench, n: int, k: int):
    """One token, the weights in strips."""
    torch = b.torch
    x, y = torch.randn(1, k, device=b.device).half(), torch.empty(1, n, device=b.device)
    some = b.copies(lambda: b.weights("int4-g128", n, k), n * k // 2)
    v3 = b.launch.load("gemv.cu", "gemv_v3", WARPS=8, **b.products._types(x, y), **some[0].layout.defines)
    levels = b.products._levels(some[0])
    rungs = {
        "gemv_v3": lambda w: v3((n // 16, 1, 1), (256, 1, 1), w.data, x, levels, y, n, k),
        "gemv_v4": lambda w: b.products.gemv(w, x, y, overlap=False),
        "gemv_v5": lambda w: b.products.gemv(w, x, y),
    }
    for rung, call in rungs.items():
        us = b.microseconds([lambda w=w, call=call: call(w) for w in some])
        yield _row("ladder", f"{rung} int4-g128", us, n, k)


def _token_rungs(b: Bench, n: int, k: int, m: int):
    """Many tokens."""
    torch = b.torch
    x, y = torch.randn(m, k, device=b.device).half(), torch.empty(m, n, device=b.device, dtype=torch.half)
    some = b.copies(lambda: b.weights("int4-g128", n, k), n * k // 2)
    rungs = {"gemm": b.products.gemm}
    if b.launch.capability(b.device.index) == (9, 0):
        rungs["gemm_sm90"] = b.products.gemm_sm90
    for rung, multiply in rungs.items():
        us = b.microseconds([lambda w=w, f=multiply: f(w, x, y) for w in some])
        yield _row("ladder", f"{rung} int4-g128", us, n, k, m)


def vectors(b: Bench):
    """One token, the shapes of large layers."""
    for n, k in SHAPES:
        peers = {"cublas": b.float16(n, k, 1), "torch_int4": torch_int4(b, n, k, 1)}
        yield _row("vectors", "int4-g128", b.product("int4-g128", n, k, 1), n, k, **peers)


def tokens(b: Bench):
    """More tokens, one shape."""
    for m in TOKENS:
        n, k = 8192, 28672
        peers = {"cublas": b.float16(n, k, m), "torch_int4": torch_int4(b, n, k, m)}
        yield _row("tokens", "int4-g128", b.product("int4-g128", n, k, m), n, k, m, **peers)


def formats(b: Bench):
    """One token, every format."""
    n, k = FORMAT_SHAPE
    for name in FORMATS:
        yield _row("formats", name, b.product(name, n, k, 1), n, k)


def dequantize(b: Bench):
    """Decoding to float32."""
    from refquant_kernels.cuda import dequantize as decoders

    n, k = FORMAT_SHAPE
    out = b.torch.empty(n, k, device=b.device)
    for name in (f for f in FORMATS if find_format(f).stream):
        blocks = b.torch.from_numpy(b.quantized(name, 128, k).arrays["blocks"]).to(b.device).repeat(n // 128, 1)
        rungs = [("", 4, name)] + ([("_v1", 1, f"v1 {name}")] if name == "Q4_K" else [])
        for suffix, each, title in rungs:
            kernel = b.launch.load("decode.cu", f"decode_{name.lower()}{suffix}", options=("--fmad=false",))
            grid = (n * k // (each * decoders.THREADS), 1, 1)
            us = b.microseconds([lambda f=kernel, g=grid, w=blocks: f(g, (decoders.THREADS, 1, 1), w, out, n * k)] * 4)
            yield _row("dequantize", title, us, n, k, nbytes=ops.traffic("dequantize", (n, k), name).bytes)


TABLES = {f.__name__: f for f in (ladder, vectors, tokens, formats, dequantize)}
TABLES |= gpu_decode.TABLES | gpu_quantize.TABLES


def measure(args, on_row=lambda row: None) -> dict:
    """Measure the tables that `args` asks for; call `on_row` with each row when it is done."""
    b = Bench(args.runs)
    torch, rows = b.torch, []
    result = {
        "device": torch.cuda.get_device_name(b.device),
        "driver": gpu_report.driver_version(),
        "torch": torch.__version__,
        "compiler": ".".join(map(str, b.launch.compiler_version())),
        "date": time.strftime("%Y-%m-%d"),
        "runs": args.runs,
        "read_bandwidth": read_bandwidth(b),
        "sources": {name: b.launch.source_hash(name) for name in SOURCES},
        "rows": rows,
    }
    for name in tqdm(args.tables.split(","), desc="tables", unit="table"):
        if name not in TABLES:
            raise BackendUnavailable(f"no table {name!r}; there are {', '.join(TABLES)}")
        for row in TABLES[name](b):
            rows.append(row)
            on_row(row)
        b._packed.clear()
        torch.cuda.empty_cache()
    return result


def run(args) -> int:
    """Measure, print the tables, write what was asked for."""
    result = measure(args)
    print(gpu_report.markdown(result))
    if args.json:
        _write(Path(args.json), json.dumps(result, indent=1) + "\n")
    if args.markdown:
        path = Path(args.markdown)
        _write(path, gpu_report.renew(path.read_text(encoding="utf-8") if path.exists() else "", result))
    if args.picture:
        gpu_report.draw(result, args.picture)
    return 0


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
