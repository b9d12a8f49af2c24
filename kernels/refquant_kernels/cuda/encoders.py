"""quantize of every block format on the GPU: which kernel encodes it, and in tiles of how many blocks.

The kernels are in quantize_k.cu, quantize_legacy.cu, quantize_iq.cu and quantize_rounded.cu. NumPy arrays go in and
out, as on the other backends; for weights that are on the GPU already there is `encode`.
"""

from dataclasses import dataclass, field

from refquant import ops
from refquant.errors import BadInput
from refquant.methods.kquants.blocks import check_importance
from refquant.quantized import Quantized, find_format
from refquant_kernels.cuda import launch
from refquant_kernels.cuda.tensors import STRICT, aligned, empty, to_gpu

THREADS = 128  # of a block of every encoder


@dataclass(frozen=True)
class Encoder:
    """A kernel for one format. A block of it takes a tile of `tile` weights."""

    file: str
    kernel: str
    weights: int  # of a block of the format
    tile: int
    importance: bool = True  # whether the format uses one
    sums: bool = False  # whether it needs the sums of squares of the rows then
    defines: dict = field(default_factory=dict)


ENCODERS = {
    f"Q{bits}_K": Encoder("quantize_k.cu", "quantize", 256, THREADS * size, defines={"BITS": bits})
    for bits, size in ((2, 16), (3, 16), (4, 32), (5, 32), (6, 16))
}
for _name, _bits, _min in (("Q4_0", 4, 0), ("Q4_1", 4, 1), ("Q5_0", 5, 0), ("Q5_1", 5, 1), ("Q8_0", 8, 0)):
    ENCODERS[_name] = Encoder(
        "quantize_legacy.cu", "quantize", 32, THREADS * 32, _bits < 8, True, {"BITS": _bits, "MIN": _min}
    )
for _name, _subs in (("IQ4_NL", 1), ("IQ4_XS", 8)):
    _defines = {"SUB_BLOCKS": _subs, "LOOKUP": 1}
    ENCODERS[_name] = Encoder("quantize_iq.cu", "quantize", 32 * _subs, THREADS * 32, defines=_defines)
for _name, _size, _tile in (("TQ1_0", 256, 32), ("TQ2_0", 256, 32), ("MXFP4", 32, 32), ("F16", 1, 4), ("BF16", 1, 4)):
    ENCODERS[_name] = Encoder("quantize_rounded.cu", _name.lower(), _size, THREADS * _tile, importance=False)


def encode(w, name: str, importance=None):
    """Encode weights that are on the GPU; nothing waits for the result.

    Parameters
    ----------
    w : float32 tensor [n, k]
        Finite. (`refquant.quantize` checks that, this function does not.)
    name : str
        A block format other than F32.
    importance : float32 tensor [k], optional
        None negative, all finite.

    Returns
    -------
    blocks : uint8 tensor [n, bytes of a row]
        The bytes that ggml makes.
    """
    torch, encoder, (n, k) = launch.torch(), ENCODERS[name], w.shape
    ((dims, _),) = find_format(name).layout(n, k).values()  # refuses a width that the format cannot hold
    if w.dtype != torch.float32 or (importance is not None and importance.dtype != torch.float32):
        raise BadInput(f"{name}: weights and importance must be float32, got {w.dtype}")
    out = empty(dims, "uint8", w)
    launch_encoder(encoder, w, out, importance)
    return out


def launch_encoder(encoder: Encoder, w, out, importance=None) -> None:
    """Fill `out`, bytes, with the blocks of `w` [n, k]."""
    (n, k), w = w.shape, aligned(w)
    grid, block = (-(-n * k // encoder.tile), 1, 1), (THREADS, 1, 1)
    if encoder.file == "quantize_rounded.cu":
        launch.load(encoder.file, encoder.kernel, STRICT)(grid, block, w, n * k // encoder.weights, out)
        return
    weighted = importance is not None and encoder.importance
    kernel = launch.load(encoder.file, encoder.kernel, STRICT, **encoder.defines, WEIGHTED=int(weighted))
    column = aligned(importance) if weighted else w
    sums = ()
    if encoder.sums:
        sums = (row_sums(w, encoder.defines) if weighted else w,)
    kernel(grid, block, w, column, *sums, n * k // encoder.weights, k, out)


def row_sums(w, defines: dict):
    """Sum of the squares of each row of `w` [n, k], from left to right: float32 tensor [n]."""
    n, k = w.shape
    sums = empty((n,), "float32", w)
    kernel = launch.load("quantize_legacy.cu", "row_sums", STRICT, **defines, WEIGHTED=1)
    kernel((-(-n // 32), 1, 1), (256, 1, 1), w, n, k, sums)
    return sums


def _quantize(w, name, importance=None):
    """Quantize `w`, float32 [n, k]; the same bytes as backend "numpy"."""
    check_importance(importance)
    weight = None if importance is None else to_gpu(importance)
    return Quantized(name, w.shape, {"blocks": encode(to_gpu(w), name, weight).cpu().numpy()})


for _name in ENCODERS:
    ops.fast_path("quantize", _name, backend="cuda")(_quantize)
