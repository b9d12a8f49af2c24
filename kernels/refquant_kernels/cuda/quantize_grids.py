"""quantize to the uniform grids, NF4, FP8 and LLM.int8 on the GPU: round to nearest, the same arrays as "numpy".

The kernels are in quantize_int.cu and quantize_codebook.cu. LLM.int8 needs none: torch's own operations, one rounding
each, are the reference's.
"""

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.formats.bits import packed_bytes
from refquant.formats.fp8 import _SCALE, _shared
from refquant.grids import as_grid
from refquant.methods import llm_int8
from refquant.methods.nf4 import nest
from refquant.quantized import Quantized
from refquant_kernels.cuda import launch
from refquant_kernels.cuda.tensors import BLOCK, STRICT, aligned, empty, on_host, run, to_gpu

SPAN = 1024  # neighbours of a row that a thread block takes, in the kernels that go by rows


def _spans(a) -> int:
    """Threads for a matrix whose rows are cut into spans, a block each."""
    return BLOCK * len(a) * -(-a.shape[1] // SPAN)


# ---- uniform grids


def pack(codes, bits: int):
    """Codes, uint8 tensor [n, k], as dense streams [n, bytes of a row]."""
    n, k = codes.shape
    if bits == 8:
        return codes
    out = empty((n, packed_bytes(k, bits)), "uint8", codes)
    run("quantize_int.cu", "pack", _spans(out), codes, k, bits, out)
    return out


def fit_groups(w, grid):
    """Scales and zero-points, float32 tensors [n, G], of the groups of `w` [n, k]; `IntGrid.fit_groups`."""
    n, k = w.shape
    size = grid.group_size or k
    scales, zeros = (empty((n, -(-k // size)), "float32", w) for _ in range(2))
    half, sym = int(grid.scale_dtype == "float16"), int(grid.sym)
    run("quantize_int.cu", "fit", 32 * scales.numel(), w, n, k, size, grid.bits, sym, half, scales, zeros)
    return scales, zeros


def check_scales(scales, grid) -> None:
    """Raise `BadInput` where a scale is infinite, as `IntGrid` does. Waits for the GPU."""
    if not bool(launch.torch().isfinite(scales).all()):
        raise BadInput(f"{grid.name}: a scale does not fit {grid.scale_dtype}; use scale_dtype='float32'")


def encode_groups(w, grid):
    """Round `w`, float32 tensor [n, k], to a uniform grid: the arrays of the format, as tensors. Waits for the GPU."""
    arrays = encode_unchecked(w, grid)
    check_scales(arrays["scales"], grid)
    return arrays


def encode_unchecked(w, grid):
    """`encode_groups` of weights whose scales are known to be finite; nothing waits for the result."""
    (n, k), size, bits = w.shape, grid.group_size or w.shape[1], grid.bits
    if not (size in (32, 64, 128) and k % size == 0 and bits in (2, 4, 8) and grid.scale_dtype == "float16"):
        return encode_in_steps(w, grid)
    codes, scales = empty((n, packed_bytes(k, bits)), "uint8", w), empty((n, k // size), "float16", w)
    zeros = empty((n, k // size), "uint8", w)
    args = (n * k // size, size, bits, int(grid.sym), codes, scales, zeros)
    run("quantize_int.cu", "quantize_groups", n * k // 4, aligned(w), *args)
    arrays = {"codes": codes, "scales": scales}
    return arrays if grid.sym else arrays | {"zeros": pack(zeros, bits)}


def encode_in_steps(w, grid):
    """`encode_unchecked` for any group and number of bits: fit, encode, pack."""
    torch, w, size = launch.torch(), w.contiguous(), grid.group_size or w.shape[1]
    scales, zeros = fit_groups(w, grid)
    codes = empty(w.shape, "uint8", w)
    run("quantize_int.cu", "encode", _spans(w), w, scales, zeros, w.shape[1], size, grid.bits, codes)
    arrays = {"codes": pack(codes, grid.bits), "scales": scales.to(getattr(torch, grid.scale_dtype))}
    return arrays if grid.sym else arrays | {"zeros": pack(zeros.to(torch.uint8), grid.bits)}


def round_groups(w, grid):
    """What rounding to a uniform grid makes of `w`, float32 tensor [n, k]; `rtn.rounded`."""
    k, w = w.shape[1], w.contiguous()
    (scales, zeros), out = fit_groups(w, grid), empty(w.shape, "float32", w)
    check_scales(scales, grid)
    run("quantize_int.cu", "round_groups", _spans(w), w, scales, zeros, k, grid.group_size or k, grid.bits, out)
    return out


@ops.fast_path("quantize", "int", backend="cuda")
def quantize_int(w, name, importance=None):
    """RTN on a uniform grid."""
    return Quantized(name, w.shape, on_host(encode_groups(to_gpu(w), as_grid(name))))


# ---- NF4


def encode_nf4(w, grid):
    """Codes, two a byte, uint8 [ceil(n k / 2), 1], and absmax float32 [blocks], tensors, of `w` [n, k]."""
    count, size = w.numel(), grid.group_size
    codes = empty((-(-count // 2), 1), "uint8", w)
    absmax = empty((-(-count // size),), "float32", w)
    run("quantize_codebook.cu", "nf4", 32 * len(absmax), aligned(w), count, size, codes, absmax)
    return codes, absmax


@ops.fast_path("quantize", "nf4", backend="cuda")
def quantize_nf4(w, name, importance=None):
    """Codes on the GPU; double quantization, of one number for 64 weights, by the reference."""
    grid = as_grid(name)
    codes, absmax = (tensor.cpu().numpy() for tensor in encode_nf4(to_gpu(w), grid))
    scales = nest(absmax) if grid.nested else {"absmax": absmax}
    return Quantized(name, w.shape, {"weight": codes, "quant_map": grid.codebook.values} | scales)


# ---- FP8


def encode_fp8(w, grid):
    """Codes uint8 [n, k] and scales float32 [row blocks, groups], tensors, of `w` [n, k] on an FP8 grid."""
    (n, k), torch = w.shape, launch.torch()
    rows, columns = grid.rows or n, grid.group_size or k
    down, across = -(-n // rows), -(-k // columns)
    size = torch.nn.functional.pad(w.abs(), (0, across * columns - k, 0, down * rows - n))
    peaks = size.view(down, rows, across, columns).amax(dim=(1, 3))
    scales = to_gpu(grid.scale(peaks.cpu().numpy()).astype(np.float32))
    return cast_fp8(w, scales, grid), scales


def cast_fp8(w, scales, grid):
    """Codes, uint8 tensor, of `w` [n, k] over its scales [row blocks, groups]."""
    (n, k), w, book = w.shape, aligned(w), grid.codebook
    codes, largest, signed_zero = empty((n, k), "uint8", w), len(book.magnitudes) - 1, int(book.special != "fnuz")
    args = (k, grid.rows or n, grid.group_size or k, book.fraction_bits, book.bias, largest, signed_zero, codes)
    run("quantize_codebook.cu", "fp8", _spans(w), w, scales, *args)
    return codes


@ops.fast_path("quantize", "fp8", backend="cuda")
def quantize_fp8(w, name, importance=None):
    """Codes by a kernel, the maxima by torch."""
    codes, scales = (tensor.cpu().numpy() for tensor in encode_fp8(to_gpu(w), as_grid(name)))
    shared = _shared(name)
    return Quantized(name, w.shape, {"weight": codes, _SCALE[shared]: scales[0] if shared == "tensor" else scales})


# ---- LLM.int8


def int8_rows(a):
    """Codes int8 [m, k] and largest magnitudes float32 [m] of a float16 tensor [m, k]; `llm_int8.rowwise`."""
    torch, largest = launch.torch(), a.abs().amax(dim=1).float()
    factor = llm_int8.LEVELS * torch.where(largest > 0, 1 / largest, 0.0)
    levels = torch.round(a.float() * factor[:, None])
    return levels.clamp(-llm_int8.LEVELS, llm_int8.LEVELS).to(torch.int8), largest


def to_half(a):
    """A tensor rounded to float16; raises `BadInput` beyond it. Waits for the GPU."""
    half = a.half()
    if not bool(launch.torch().isfinite(half).all()):
        raise BadInput(f"llm-int8 rounds to float16 first, and {float(a.abs().max()):.3g} is beyond it (65504)")
    return half


@ops.fast_path("quantize", "llm-int8", backend="cuda")
def quantize_int8(w, name, importance=None):
    """Rows of int8 codes and their maxima."""
    codes, largest = int8_rows(to_half(to_gpu(w)))
    return Quantized(name, w.shape, on_host({"CB": codes, "SCB": largest}))


@ops.fast_path("matmul", "llm-int8", backend="cuda")
def matmul_int8(x, q):
    """`llm_int8.matmul`: int8 by tensor cores (`torch._int_mm`), the columns with outliers apart, in float32."""
    tokens = llm_int8.check_inputs(np.atleast_2d(x), q.shape[1])
    CB, SCB = to_gpu(q.arrays["CB"]), to_gpu(q.arrays["SCB"])
    y = multiply_int8(to_gpu(tokens), CB, SCB, float(q.arrays.get("threshold", llm_int8.THRESHOLD)))
    return y.cpu().numpy().reshape(*np.shape(x)[:-1], q.shape[0])


_INT8 = ("flag", "encode_tokens", "list_columns", "finish")


def multiply_int8(x, CB, SCB, threshold: float = llm_int8.THRESHOLD):
    """Tokens, float32 tensor [m, k], times the weights CB int8 [n, k], SCB float32 [n]: float32 [m, n] (int8.cu)."""
    torch, (m, k), n = launch.torch(), x.shape, len(CB)
    if not 0 < threshold <= 65504:
        to_half(x)  # nothing would keep a number beyond float16 apart
    x, kernels = aligned(x), {name: launch.load("int8.cu", name, STRICT) for name in _INT8}
    flags = torch.zeros(k, dtype=torch.int32, device=x.device)
    kernels["flag"]((max(1, -(-x.numel() // 256)), 1, 1), (256, 1, 1), x, x.numel(), k, threshold, flags)
    codes, largest = empty((max(m, 32), k), "int8", x), empty(m, "float32", x)  # `_int_mm` wants 17 rows
    args = (x, flags, m, k, threshold, float(llm_int8.LEVELS), codes, largest)
    kernels["encode_tokens"]((len(codes), 1, 1), (256, 1, 1), *args)
    columns, count = empty(k, "int32", x), empty(1, "int32", x)
    kernels["list_columns"]((1, 1, 1), (256, 1, 1), flags, k, columns, count)
    integers, y = int_product(codes, CB), empty((m, n), "float32", x)
    factors = np.float32(llm_int8.DEQUANTIZE).item(), np.float32(1 / llm_int8.LEVELS).item()
    args = (integers, x, CB, SCB, largest, columns, count, *factors, y, m, n, k, integers.shape[1])
    kernels["finish"]((max(1, -(-n // 64)), max(1, -(-m // 16)), 1), (256, 1, 1), *args)
    return y


def int_product(a, b):
    """Product of int8 tensors [m, k] and [n, k], int32 [m, at least n]; `torch._int_mm` wants multiples of 8."""
    torch, k, n = launch.torch(), a.shape[1], len(b)
    pad = torch.nn.functional.pad
    if k % 16:
        a = pad(a, (0, -k % 16))
    if k % 16 or n % 16:
        b = pad(b, (0, -k % 16, 0, -n % 16))
    return torch._int_mm(a, b.T)
