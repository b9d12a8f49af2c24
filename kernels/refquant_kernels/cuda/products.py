"""matmul of every format on a GPU: strips for what has them, float32 weights for the rest.

    plan = prepare(q, device)              # once: packs the weights (strips.py) and keeps them on the device
    y = plan(x)                            # x float16 or bfloat16 [..., k] there -> [..., n], x's dtype or float32

`refquant.matmul(x, q, backend="cuda")` does both, for NumPy arrays; what was packed is kept as long as `q` lives.
Activations are float16: x is rounded to it. Sums are float32, and so is what `refquant.matmul` returns.
"""

import functools
import weakref

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant_kernels.cuda import launch, strips

FAMILIES = (*strips.GGUF, "F32", "F16", "BF16", "int", "fp8", "nf4", "mxfp4", "nvfp4")
# tokens up to which -> RT, NT, RW, CW (gemm.cu)
WARPGROUPS = {8: 4, 16: 3, 32: 3, 64: 3, 128: 2}  # of a block, for so many tokens (gemm_sm90.cu)
TILES = {8: (1, 1, 8, 1), 16: (1, 2, 8, 1), 32: (2, 4, 8, 1), 64: (2, 8, 8, 1), 128: (2, 8, 4, 2)}


class Product:
    """y = x W^T for one matrix on one device."""

    def __init__(self, q, device):
        torch = launch.torch()
        self.shape, self.device = q.shape, torch.device(device)
        self.strips = strips.pack(q, self.device)
        self.dense = None
        if self.strips is None:
            self.dense = torch.from_numpy(ops.dequantize(q)).to(self.device)

    def __call__(self, x, wide: bool = False):
        """Multiply x, a float16 or bfloat16 tensor [..., k] on the device; the result is float32 if `wide`."""
        torch = launch.torch()
        if x.shape[-1] != self.shape[1] or x.dtype not in (torch.float16, torch.bfloat16) or x.device != self.device:
            raise BadInput(
                f"expected float16 or bfloat16 [..., {self.shape[1]}] on {self.device}, got {x.dtype} {list(x.shape)} "
                f"on {x.device}"
            )
        rows = x.reshape(-1, x.shape[-1])
        y = torch.empty((len(rows), self.shape[0]), dtype=torch.float32 if wide else x.dtype, device=self.device)
        if len(rows):
            if self.strips is None:
                y.copy_(_float32_product(rows, self.dense))
            else:
                multiply(self.strips, rows.contiguous(), y)
        return y.view(*x.shape[:-1], self.shape[0])


def _float32_product(x, w):
    torch = launch.torch()
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return x.float() @ w.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# ---- launches


def multiply(w: strips.Strips, x, y, **choice) -> None:
    """Y = x W^T: x float16 or bfloat16 [m, k], y float32 or x's dtype [m, n], contiguous, on the device of `w`.

    `choice` overrides what the kernel is compiled with: for measurements.
    """
    if w.order is not None:
        x = x[:, w.order]
    if len(x) == 1:
        gemv(w, x, y, **choice)
    else:
        (gemm_sm90 if launch.capability(x.device.index) == (9, 0) else gemm)(w, x, y, **choice)


def _types(x, y) -> dict:
    torch = launch.torch()
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "float"}
    half = {} if y.dtype == torch.float32 else {"Y_HALF": 1}
    return {"X": names[x.dtype], "Y": names[y.dtype], "IS_BF16": int(x.dtype == torch.bfloat16)} | half


@functools.cache
def _nothing(device, dtype):
    return launch.torch().zeros(16, dtype=dtype, device=device)


def _levels(w):
    torch = launch.torch()
    return _nothing(w.data.device, torch.int32) if w.levels is None else w.levels


def gemv_shared(layout: strips.Layout, k: int, warps: int, stages: int) -> int:
    """Bytes of shared memory of gemv_v4."""
    padded = strips.COLUMNS * -(-k // strips.COLUMNS)
    sums = 4 * padded // layout.sub if layout.has_minimum else 0
    if layout.scale == "S_Q2_K":  # whole.cuh
        sums += 2 * padded + padded // 64
    return warps * stages * layout.record + 2 * padded + 640 + 4 * (2 * warps * 16 + 16) + sums


def gemv_choice(layout: strips.Layout, few: bool = False) -> tuple[int, int, int]:
    """Warps of a block, records ahead, blocks a multiprocessor: what was quickest on an H100 (`refquant bench gpu`).

    `few`: there are no more strips than two for each multiprocessor, and they are short.
    """
    if layout.bits in (4, 5, 6) and (layout.sub <= 32 or layout.value == "V_LEVELS" or few):
        return 8, 3, 2  # scales take time: more independent blocks
    if layout.bits == 3 and layout.sub <= 32:
        return 8, 4, 2
    return (16, 3, 1) if layout.bits == 4 else (16, 2, 1)


def gemv(w, x, y, warps=None, stages=None, blocks=None, overlap=True, made_by=None, extra=None):
    """One token. `made_by`: the defines INPUT, ADD, GATE of gemv.cu, with `extra`, the norm's float16 weight [k]."""
    torch = launch.torch()
    (n, k), layout = w.shape, w.layout
    processors, most = launch.properties(x.device.index)
    few = n <= 2 * strips.ROWS * processors and k <= 8192
    chosen = (16, 2, 1) if made_by else gemv_choice(layout, few)  # few blocks: each makes x
    warps, stages = warps or chosen[0], stages or chosen[1]
    while gemv_shared(layout, k, warps, stages) > most:
        stages, warps = (stages - 1, warps) if stages > 1 else (stages, warps // 2)
        if warps < 2:  # a row too wide for shared memory
            if made_by:
                raise BadInput(f"a row of {k} does not fit into shared memory with what it is made of")
            gemm(w, x, y)
            return
    defines = {"WARPS": warps, "STAGES": stages} | _types(x, y) | layout.defines | (made_by or {})
    kernel = launch.load("gemv.cu", "gemv_v4", **defines)
    extra = _nothing(x.device, torch.float16) if extra is None else extra
    grid = (min(blocks or chosen[2] * processors, -(-n // strips.ROWS)), 1, 1)
    shared = gemv_shared(layout, k, warps, stages)
    if made_by:
        # Among kernels of several kinds, blocks are put wherever there is room: two of a launch on one multiprocessor,
        # none on another (seen on an H100: 66 of 132 had all the work). So there is no room for two.
        shared = max(shared, most // 2 + 1024)
    args = (w.data, x, extra, _levels(w), y, n, k)
    kernel(grid, (32 * warps, 1, 1), *args, shared=shared, overlap=overlap)


_WORK = {}  # workspace and counters of a stream, by device and stream


def _workspace(device, floats: int, counters: int):
    torch = launch.torch()
    key = device, launch.current_stream(device.index)
    space, counts = _WORK.get(key, (None, None))
    if space is None or space.numel() < floats or counts.numel() < counters:
        if torch.cuda.is_current_stream_capturing():
            raise BadInput(
                "the first product of this size on a stream cannot be captured in a graph: run it once before"
            )
        space = torch.empty(max(floats, 1 << 22), dtype=torch.float32, device=device)
        counts = torch.zeros(max(counters, 1 << 12), dtype=torch.int32, device=device)
        _WORK[key] = space, counts
    return space, counts


def gemm(w, x, y, tile=None, stages=None, splits=None, overlap=True):
    """Any number of tokens."""
    torch = launch.torch()
    (n, k), layout, m = w.shape, w.layout, len(x)
    rt, nt, rw, cw = tile or TILES[min(size for size in TILES if size >= min(m, 128))]
    tokens, rows, threads = 8 * nt * cw, 16 * rt * rw, 32 * rw * cw
    processors, most = launch.properties(x.device.index)
    records = -(-k // strips.COLUMNS)
    stage = rt * rw * layout.record + 512 * tokens
    if layout.has_minimum:
        stage += 4 * tokens * (strips.COLUMNS // layout.sub)
    stages = stages or max(2, min(6, (most - 1024) // stage))
    defines = {"RT": rt, "NT": nt, "RW": rw, "CW": cw, "STAGES": stages} | _types(x, y) | layout.defines
    grid = [-(-n // rows), 1, -(-m // tokens)]
    blocks = grid[0] * grid[2]
    grid[1] = splits or max(1, min(processors // blocks, records // 2))
    back = sums = _nothing(x.device, torch.float32)
    if layout.has_minimum or x.dtype == torch.bfloat16 or k % 8 or x.data_ptr() % 16:
        padded = records * strips.COLUMNS
        xs = torch.empty((grid[2] * tokens, padded), dtype=torch.float16, device=x.device)
        back = torch.empty(grid[2] * tokens, dtype=torch.float32, device=x.device)
        sums = torch.empty(grid[2] * tokens * padded // layout.sub, dtype=torch.float32, device=x.device)
        prepare = launch.load("gemm.cu", "prepare", **defines)
        prepare((grid[2] * tokens, 1, 1), (256, 1, 1), x, xs, back, sums, m, k, overlap=overlap)
        width = padded
    else:
        xs, width = x, k
    parts = grid[1] > 1
    space, counters = _workspace(x.device, 4 * threads * rt * nt * blocks * grid[1] * parts, blocks * parts)
    kernel = launch.load("gemm.cu", "gemm", **defines)
    args = (w.data, xs, sums, back, _levels(w), y, space, counters, m, n, width)
    kernel(tuple(grid), (threads, 1, 1), *args, shared=stages * stage, overlap=overlap)


def gemm_sm90(w, x, y, tokens=None, groups=None, stages=None, splits=None, overlap=True):
    """Any number of tokens, on Hopper."""
    torch = launch.torch()
    (n, k), layout, m = w.shape, w.layout, len(x)
    tokens = tokens or min(size for size in WARPGROUPS if size >= min(m, 128))
    groups = groups or WARPGROUPS[tokens]
    processors, most = launch.properties(x.device.index)
    records, threads = -(-k // strips.COLUMNS), 128 * groups
    sums_bytes = 4 * tokens * (strips.COLUMNS // layout.sub) if layout.has_minimum else 0
    stage = -(-(512 * tokens + 4 * groups * layout.record + sums_bytes) // 1024) * 1024
    stages = stages or min(6, (most - 2048) // stage)
    defines = {"TOKENS": tokens, "WGS": groups, "STAGES": stages} | _types(x, y) | layout.defines
    grid = [-(-n // (64 * groups)), 1, -(-m // tokens)]
    blocks, padded = grid[0] * grid[2], records * strips.COLUMNS
    grid[1] = splits or max(1, min(processors // blocks, records // 2))
    xs = torch.empty(grid[2] * tokens * padded, dtype=torch.float16, device=x.device)
    back = torch.empty(grid[2] * tokens, dtype=torch.float32, device=x.device)
    sums = torch.empty(grid[2] * tokens * padded // layout.sub, dtype=torch.float32, device=x.device)
    prepare = launch.load("gemm_sm90.cu", "prepare_sm90", **defines)
    prepare((grid[2] * tokens, -(-records // 8), 1), (256, 1, 1), x, xs, back, sums, m, k, overlap=overlap)
    parts = grid[1] > 1
    space, counters = _workspace(x.device, threads * tokens // 2 * blocks * grid[1] * parts, blocks * parts)
    kernel = launch.load("gemm_sm90.cu", "gemm_sm90", **defines)
    args = (w.data, xs, sums, back, _levels(w), y, space, counters, m, n, k)
    kernel(tuple(grid), (threads + 32, 1, 1), *args, shared=stages * stage + 1024, overlap=overlap)


# ---- as an operation

_PLANS = weakref.WeakKeyDictionary()


def prepare(q, device=None) -> Product:
    """Return the product with a `Quantized` on a device (the current GPU), packed at the first call."""
    torch = launch.torch()
    device = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)
    plans = _PLANS.setdefault(q, {})
    if device not in plans:
        plans[device] = Product(q, device)
    return plans[device]


@ops.fast_path("matmul", *FAMILIES, backend="cuda")
def matmul(x, q):
    """X [..., k] NumPy -> float32 [..., n]; x is rounded to float16."""
    torch = launch.torch()
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(x, dtype=np.float16)
    if not np.array_equal(np.isfinite(half), np.isfinite(x)):
        raise BadInput("matmul with backend 'cuda': activations beyond 65504 do not fit float16")
    product = prepare(q)
    return product(torch.from_numpy(half).to(product.device), wide=True).cpu().numpy()
