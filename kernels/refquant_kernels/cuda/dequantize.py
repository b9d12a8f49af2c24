"""dequantize of every format on a GPU, bit for bit as the reference; the kernels are in decode.cu.

`decode(q, device)` leaves the weights there, as a float32 tensor; `refquant.dequantize(q, backend="cuda")` brings them
back as a NumPy array. Leaves out: decoding to float16.
"""

import numpy as np

from refquant import ops
from refquant.codebooks import E2M1, E4M3, e8m0
from refquant.errors import BadInput
from refquant.grids import as_grid
from refquant.quantized import find_format
from refquant_kernels.cuda import launch

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
BLOCKS += ("MXFP4", "TQ1_0", "TQ2_0", "F32", "F16", "BF16")
THREADS = 256


def decode(q, device=None):
    """Weights of a `Quantized`, a float32 tensor [n, k] on a device (the current GPU)."""
    torch = launch.torch()
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)
    out = torch.empty(q.shape, dtype=torch.float32, device=device)
    {"int": _integers, "llm-int8": _rows}.get(find_format(q.format).family, _blocks if q.format in BLOCKS else _levels)(
        q, out, lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)
    )
    return out


def _launch(name, out, *args, weights=1):
    kernel = launch.load("decode.cu", name, options=("--fmad=false",))
    kernel((-(-out.numel() // (weights * THREADS)), 1, 1), (THREADS, 1, 1), *args, out.numel())


def _blocks(q, out, put):
    _launch(f"decode_{q.format.lower()}", out, put(q.arrays["blocks"]), out, weights=4)


def _integers(q, out, put):
    grid, arrays, k = as_grid(q.format), q.arrays, q.shape[1]
    group = grid.group_size or k
    g_idx, groups = arrays.get("g_idx"), -(-k // group)
    if g_idx is not None and (g_idx.min() < 0 or g_idx.max() >= groups):
        raise BadInput(f"{q.format}: g_idx must lie in 0..{groups - 1}, got {g_idx.min()}..{g_idx.max()}")
    zeros, columns = arrays.get("zeros", np.zeros(1, np.uint8)), np.zeros(1, np.int32) if g_idx is None else g_idx
    scales = put(arrays["scales"].astype(np.float32))
    tensors = put(arrays["codes"]), scales, put(zeros), put(columns), out
    _launch("decode_int", out, *tensors, k, min(group, k), grid.bits, int(grid.sym), int(g_idx is None))


def _levels(q, out, put):
    fields, grid, k = ops.unpack(q), as_grid(q.format), q.shape[1]
    if q.format.startswith("nf4"):  # blocks run through the whole matrix: one long row
        table, codes, bits, k = fields["quant_map"], q.arrays["weight"], -4, q.shape[0] * q.shape[1]
        scales = fields["absmax"]
        if grid.nested:
            nested = np.repeat(fields["nested_absmax"], 256)[: len(scales)]
            scales = fields["nested_quant_map"][scales] * nested + fields["nested_offset"]
        group = grid.group_size
        if k >= 1 << 31:
            raise BadInput(f"{q.format}: backend 'cuda' decodes matrices of less than 2^31 weights")
    elif q.format.startswith("fp8"):
        table, codes, bits, scales = grid.codebook.values, fields["codes"], 8, fields["scales"]
        group = grid.group_size or k
    else:
        table, codes, bits = E2M1.values, q.arrays["weight_packed"], 4
        nvfp4, scales = q.format == "nvfp4", fields["scales"]
        scales = E4M3.decode(scales) / fields["global_scale"] if nvfp4 else e8m0(scales)
        group = 16 if nvfp4 else 32
    scales = put(scales.astype(np.float32, copy=False))
    _launch("decode_levels", out, put(codes), put(table), scales, out, k, min(group, k), bits)


def _rows(q, out, put):
    inverse = float(np.float32(1 / 127))
    _launch("decode_rows", out, put(q.arrays["CB"]), put(q.arrays["SCB"]), out, q.shape[1], inverse)


@ops.fast_path("dequantize", *BLOCKS, "int", "fp8", "nf4", "mxfp4", "nvfp4", "llm-int8", backend="cuda")
def dequantize(q):
    """Weights float32 [n, k], NumPy."""
    return decode(q).cpu().numpy()
