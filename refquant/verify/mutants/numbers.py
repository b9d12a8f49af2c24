"""Mistakes about rounding: narrow floats, scales, products."""

import numpy as np

from refquant.codebooks import E4M3, E4M3_FNUZ
from refquant.verify.mutants import mutant
from refquant.verify.mutants.checkpoints import _fields, _weights
from refquant.verify.reference import numpy as reference


@mutant(41, "cuts bfloat16 off instead of rounding", "cast", "BF16")
def truncated(x, **_):
    """Keep the upper half; a NaN whose payload lies below becomes infinity."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


@mutant(41, "flushes the subnormals of float16 to zero", "cast", "F16")
def flushed(x, **_):
    """Round what is normal only."""
    half = np.where(np.abs(x) < 2.0**-14, np.copysign(0, x), x).astype(np.float16)
    return half.view(np.uint16)


@mutant(41, "widens float16 by bits, without its subnormals", "dequantize", "F16")
def widened(data, *, shape, **_):
    """Add 112 to every exponent."""
    bits = data.view(np.uint16).astype(np.uint32)
    return ((bits & 0x8000) << 16 | (bits & 0x7FFF) + (112 << 10) << 13).view(np.float32).reshape(shape)


@mutant(42, "rounds ties of E4M3FN up", "cast", "E4M3FN")
def half_up(x, *, overflow, **_):
    """Nudge every number away from zero before rounding."""
    return E4M3.encode(np.nextafter(x, np.copysign(np.float32(np.inf), x)), overflow)


@mutant(42, "saturates where NaN is asked for", "cast", "E4M3FN")
def saturates(x, **_):
    """Ignore `overflow`."""
    return E4M3.encode(x, "saturate")


@mutant(42, "reads E4M3FNUZ as E4M3FN", "dequantize", "E4M3FNUZ")
def other_bias(data, **_):
    """Use bias 7."""
    return E4M3.decode(data)


@mutant(42, "writes E4M3FN as E4M3FNUZ", "cast", "E4M3FN")
def other_format(x, *, overflow, **_):
    """Use bias 8."""
    return E4M3_FNUZ.encode(x, overflow)


@mutant(43, "converts bfloat16 scales to float16", "matmul", "gptq_v2")
def half_scales(x, tensors, *, format, shape, shards=1, **params):  # noqa: A002
    """Let small scales become zero."""
    fields = _fields(tensors, format, params)
    fields["scales"] = fields["scales"].astype(np.float16).astype(np.float32)
    return x @ _weights(fields).T


@mutant(43, "writes its result through float16", "matmul", "gptq_v2", "Q8_0")
def half_results(x, data, *, format, shape, **params):  # noqa: A002
    """Let large results become infinite."""
    return reference.matmul(x, data, format=format, shape=shape, **params).astype(np.float16).astype(np.float32)


@mutant(46, "leaves out the columns after the last whole 256", "matmul", "Q8_0", "Q4_0")
def no_tail(x, data, *, format, shape, **_):  # noqa: A002
    """Stop at the last whole vector."""
    w, k = reference.dequantize(data, format=format, shape=shape), shape[1] // 256 * 256
    return x[:, :k] @ w[:, :k].T


def _rounded(w, bits, group_size, sym, stored):
    """Round; `stored` turns the exact scale into the one that the codes are chosen with, and the one that is kept."""
    groups = w.reshape(len(w), -1, group_size)
    low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
    if sym:
        high = np.maximum(-low, high)
        low = -high
    used, kept = stored((high - low) / np.float32(2**bits - 1))
    zeros = np.full_like(used, 2 ** (bits - 1)) if sym else np.rint(-low / used)
    codes = np.clip(np.rint(groups / used[..., None]) + zeros[..., None], 0, 2**bits - 1)
    return {"codes": codes.astype(np.uint8).reshape(w.shape), "scales": kept, "zeros": zeros.astype(np.uint8)}


@mutant(40, "chooses codes with a float32 scale and stores a float16 one", "quantize")
def exact_scale(w, *, format, bits=None, group_size=None, sym=None, **_):  # noqa: A002
    """Round the scale after the codes are chosen."""
    if bits is None:
        raise NotImplementedError("integer grids only")
    safe = lambda scale: np.where(scale > 0, scale, np.float32(1))  # noqa: E731
    return _rounded(w, bits, group_size, sym, lambda scale: (safe(scale), safe(scale).astype(np.float16)))


@mutant(20, "makes a NaN scale for a group of zeros", "quantize")
def nan_scale(w, *, format, bits=None, group_size=None, sym=None, **_):  # noqa: A002
    """Normalize by the largest weight, 0 / 0."""
    if bits is None:
        raise NotImplementedError("integer grids only")

    def stored(scale):
        half = scale.astype(np.float16)
        return (half * (scale / scale)).astype(np.float32), (half * (scale / scale)).astype(np.float16)

    return _rounded(w, bits, group_size, sym, stored)
