"""What `refquant bench cpu` times: each operation in each format, and the same work done by ggml, torch and NumPy."""

from dataclasses import dataclass

import numpy as np

import refquant as rq
from refquant import ops
from refquant.bench import peers
from refquant.quantized import Quantized, find_format

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
TABLES = ("nf4", "fp8-e4m3", "llm-int8")
FORMATS = (*BLOCKS, "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16", "int4-g128", "int8-row", *TABLES)
WITHOUT_IMPORTANCE = ("Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "F16", "BF16")
OPERATIONS = ("quantize", "importance", "dequantize", "matmul", "matmul_int8", "prefill", "gptq", "obq")
METHODS = {"gptq": (1024, 4096), "obq": (96,)}  # of square layers so wide, on int4-g128 only
LARGE = 4096  # so wide that the reference takes minutes
SHAPE = (256, 4096)  # of what is quantized and decoded
WIDTH = 4096
TOKENS, HEIGHT = 512, 4096  # of a prefill: tokens, and rows of weights


@dataclass
class Case:
    """Work to time: functions by name, the weights that each handles, the least bytes; where its weights lie."""

    operation: str
    format: str
    place: str
    weights: int
    least: int
    functions: dict
    threads: int = 1
    read: int | None = None  # bytes that the function "read" reads and does nothing with, if there is one

    def row(self) -> dict:
        """What the result says of it besides the times."""
        names = {"operation": self.operation, "format": self.format, "place": self.place, "threads": self.threads}
        numbers = {"weights": self.weights, "bytes": self.least}
        return names | numbers | ({"read_bytes": self.read} if self.read else {})


def weights(seed: int = 0) -> np.ndarray:
    """Normal weights of `SHAPE`."""
    return (np.random.default_rng(seed).standard_normal(SHAPE) * 0.02).astype(np.float32)


def has_ggml(name: str) -> bool:
    """Whether ggml is here, and does this format."""
    return (name in peers.DOT or name in ("F16", "BF16")) and peers.ggml() is not None


def conversion(operation: str, name: str, reference: bool) -> Case | None:
    """`quantize`, `importance` (quantize with one) or `dequantize`; None where the format has no such thing."""
    block, w = name in peers.DOT or name in ("F16", "BF16"), weights()
    if operation == "importance" and (not block or name in WITHOUT_IMPORTANCE):
        return None
    if operation == "dequantize":
        q = rq.quantize(w, name, backend="numba")
        functions = {"numba": lambda: rq.dequantize(q, backend="numba")}
        if has_ggml(name):
            functions["ggml"] = peers.ggml_dequantize(q.arrays["blocks"], name, SHAPE)
        if reference:
            functions["numpy"] = lambda: rq.dequantize(q)
    else:
        chosen = np.random.default_rng(1).chisquare(1, WIDTH).astype(np.float32) if operation == "importance" else None
        functions = {"numba": lambda: rq.quantize(w, name, importance=chosen, backend="numba")}
        if has_ggml(name):
            functions["ggml"] = peers.ggml_quantize(w, name, chosen)[0]
        if reference:
            functions["numpy"] = lambda: rq.quantize(w, name, importance=chosen)
    least = ops.traffic("dequantize" if operation == "dequantize" else "quantize", SHAPE, name).bytes
    return Case(operation, name, "cache", w.size, least, functions)


def method(operation: str, k: int, reference: bool = True, threads: int = 1) -> Case:
    """`gptq` or `obq` of a layer [k, k], its Hessian given, against the reference; a large one against gptq.py."""
    from refquant.methods import gptq, obq

    run, rng = {"gptq": gptq.quantize, "obq": obq.quantize}[operation], np.random.default_rng(1)
    inputs = rng.standard_normal((2 * k, k), np.float32)
    w, H = (rng.standard_normal((k, k)) * 0.02).astype(np.float32), gptq.hessian(inputs)
    functions = {"numba": lambda: run(w, H, "int4-g128", backend="numba")}
    if reference and k < LARGE:
        functions["numpy"] = lambda: run(w, H, "int4-g128")
    elif reference and peers.has_torch():
        functions["torch"] = peers.published_gptq(w, H)
    return Case(operation, "int4-g128", f"{k} x {k}", k * k, 8 * k * k, functions, threads)


def copied(q: Quantized, copies: int) -> Quantized:
    """Copies of a matrix, row under row."""
    name = q.format
    if name == "nf4":  # whose arrays are those of the flattened matrix
        arrays = {key: a if key == "quant_map" else np.tile(a, (copies, 1)) for key, a in q.arrays.items()}
        arrays["absmax"] = arrays["absmax"].reshape(-1)
    else:
        arrays = {key: np.tile(a, (copies, 1)) if a.ndim == 2 else np.tile(a, copies) for key, a in q.arrays.items()}
    return Quantized(name, (q.shape[0] * copies, q.shape[1]), arrays)


def stacked(name: str, megabytes: int) -> Quantized:
    """Weights of so many megabytes."""
    q = rq.quantize(weights(), name, backend="numba")
    return copied(q, max(1, (megabytes << 20) // q.nbytes))


def prefill(name: str, threads: int = 1, height: int | None = None) -> Case:
    """`matmul` of many tokens, against torch's product of float32 weights: what the unquantized model does."""
    q = copied(rq.quantize(weights(), name, backend="numba"), (height or HEIGHT) // SHAPE[0])
    x = np.random.default_rng(2).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    functions = {"numba": lambda: ops.matmul(x, q, backend="numba")}
    if peers.has_torch():
        functions["torch"] = peers.torch_mm(x, np.resize(weights(), q.shape))
    least = ops.traffic("matmul", q.shape, name, m=TOKENS).bytes
    return Case("prefill", name, f"{TOKENS} tokens", q.shape[0] * WIDTH, least, functions, threads)


def beside_reading(case: Case, data: np.ndarray) -> Case:
    """The case, beyond the cache with a plain reader of its weights beside it."""
    if case.place == "memory":
        case.functions["read"], case.read = peers.plain_read(data, case.threads)
    return case


def products(operations, name: str, place: str, megabytes: int, counts=(1,)) -> list[Case]:
    """`matmul` and `matmul_int8` of one token with a matrix of so many megabytes, for each number of threads."""
    ops.load_backend("numba")
    family, found = find_format(name).family, []
    wanted = [o for o in operations if o in ("matmul", "matmul_int8") and "numba" in ops.find_op(o, family).fast]
    if not wanted:
        return found
    large, x = stacked(name, megabytes), np.random.default_rng(2).standard_normal(WIDTH).astype(np.float32)
    least = ops.traffic("matmul", large.shape, name).bytes
    for operation in wanted:
        op = ops.find_op(operation, family)
        functions = {"numba": lambda op=op: op(x, large, backend="numba")}
        if name == "int4-g128" and peers.has_torch():
            fields = ops.unpack(rq.quantize(weights(), name, backend="numba"))
            numbers = (fields["codes"], fields["scales"].astype(np.float32), fields["zeros"].astype(np.float32))
            functions["torch"] = peers.torch_int4(x, *numbers, 128, copies=large.shape[0] // SHAPE[0])
        if name == "BF16" and operation == "matmul" and peers.has_torch():
            functions["torch"] = peers.torch_mv(x, large.arrays["blocks"].view(np.int16), "bfloat16")
        for threads in counts:
            each = dict(functions)
            if name in peers.DOT and peers.ggml() is not None:
                each["ggml"] = peers.ggml_matvec(x, large.arrays["blocks"], name, threads)[0]
            case = Case(operation, name, place, large.shape[0] * WIDTH, least, each, threads)
            found.append(beside_reading(case, max(large.arrays.values(), key=lambda a: a.nbytes)))
    return found


def float32_products(place: str, megabytes: int, counts=(1,)) -> list[Case]:
    """Torch's product of float32 weights, what the unquantized model does; NumPy's BLAS stands for ours."""
    if not peers.has_torch():
        return []
    rows = max(1, (megabytes << 20) // (4 * WIDTH))
    w, x = np.resize(weights(), (rows, WIDTH)), np.random.default_rng(2).standard_normal(WIDTH).astype(np.float32)
    functions = {"numba": lambda: w @ x, "torch": peers.torch_mv(x, w, "float32")}
    least = w.nbytes + 4 * WIDTH + 4 * rows
    cases = [Case("matmul", "F32", place, w.size, least, dict(functions), threads) for threads in counts]
    return [beside_reading(case, w) for case in cases]
