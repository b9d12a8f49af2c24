"""Mistakes about GGUF's block formats, and about models whose widths they do not divide."""

import numpy as np

from refquant.verify.mutants import mutant
from refquant.verify.reference import numpy as reference


def _half(b):
    """float16 at these two bytes of each block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(b).view("<f2").astype(np.float32)


def _nibbles(qs):
    """Codes [blocks, 256] of 128 bytes, in planes of 32."""
    q = qs.reshape(len(qs), 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(len(qs), 256)


def _plain(qs):
    """Codes of the same bytes as if neighbours in a byte were neighbours in the row."""
    return np.stack([qs & 15, qs >> 4], -1).reshape(len(qs), -1)


def _crumbs(qs):
    """2-bit codes [blocks, 256] of 64 bytes, in planes of 32."""
    q = qs.reshape(len(qs), 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    return q.reshape(len(qs), 256)


def _six_bits(s):
    """Scales and mins of Q4_K and Q5_K, [blocks, 8] each."""
    a, b, c = s[:, :4], s[:, 4:8], s[:, 8:]
    scales = np.concatenate([a & 63, c & 15 | a >> 6 << 4], 1)
    return scales, np.concatenate([b & 63, c >> 4 | b >> 6 << 4], 1)


def _spread(values, codes):
    """Values of sub-blocks for each of the codes."""
    return np.repeat(values.astype(np.float32), codes.shape[1] // values.shape[1], axis=1)


def _affine(d, dmin, scales, mins, codes):
    return _spread(d * scales, codes) * codes.astype(np.float32) - _spread(dmin * mins, codes)


@mutant(27, "the 6-bit scales of Q3_K are read as 4-bit ones", "dequantize", "Q3_K")
def q3_k_four_bits(data, *, shape, **_):
    """Leave out the upper two bits of every scale."""
    b = data.reshape(-1, 110)
    high = b[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = (_crumbs(b[:, 32:96]) | high.reshape(-1, 256) << 2).astype(np.float32) - 4
    scales = np.concatenate([b[:, 96:104] & 15, b[:, 96:104] >> 4], 1).astype(np.float32) - 8
    return (_spread(_half(b[:, 108:]) * scales, codes) * codes).reshape(shape)


@mutant(28, "the 6-bit scales of Q4_K are read byte by byte", "dequantize", "Q4_K")
def q4_k_scales(data, *, shape, **_):
    """Take byte j for scale j, and byte j + 4 for minimum j."""
    b = data.reshape(-1, 144)
    scales, mins = b[:, 4:12] & 63, b[:, 8:16] & 63
    return _affine(_half(b[:, :2]), _half(b[:, 2:4]), scales, mins, _nibbles(b[:, 16:])).reshape(shape)


@mutant(29, "the codes of Q2_K are read in plain order", "dequantize", "Q2_K")
def q2_k_order(data, *, shape, **_):
    """Take the four codes of a byte for neighbours."""
    b = data.reshape(-1, 84)
    codes = (b[:, 16:80, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1, 256)
    return _affine(_half(b[:, 80:82]), _half(b[:, 82:]), b[:, :16] & 15, b[:, :16] >> 4, codes).reshape(shape)


def _q5_k(data, shape, codes):
    b = data.reshape(-1, 176)
    scales, mins = _six_bits(b[:, 4:16])
    return _affine(_half(b[:, :2]), _half(b[:, 2:4]), scales, mins, codes(b)).reshape(shape)


def _fifth(qh, order):
    return (qh[:, None, :] >> np.array(order, np.uint8)[:, None] & 1).reshape(-1, 256) << 4


@mutant(30, "the nibbles of Q5_K are read in plain order", "dequantize", "Q5_K")
def q5_k_order(data, *, shape, **_):
    """Take the two nibbles of a byte for neighbours."""
    return _q5_k(data, shape, lambda b: _plain(b[:, 48:]) | _fifth(b[:, 16:48], range(8)))


@mutant(31, "the fifth bits of Q5_K are taken from the other end", "dequantize", "Q5_K")
def q5_k_fifth_bit(data, *, shape, **_):
    """Shift qh by 7 - j instead of j."""
    return _q5_k(data, shape, lambda b: _nibbles(b[:, 48:]) | _fifth(b[:, 16:48], range(7, -1, -1)))


@mutant(32, "returns after the first block of a row", "dequantize", "Q6_K", "Q8_0")
def first_block(data, *, format, shape, **_):  # noqa: A002
    """Leave the rest as zeros."""
    w = reference.dequantize(data, format=format, shape=shape)
    w[:, 256 if format.endswith("K") else 32 :] = 0
    return w


@mutant(32, "steps by 72 bytes where a block of Q2_K has 84", "dequantize", "Q2_K")
def wrong_step(data, *, shape, **_):
    """Begin every block but the first too early."""
    flat = data.ravel()
    moved = np.stack([flat[72 * i : 72 * i + 84] for i in range(flat.size // 84)])
    return reference.dequantize(moved.reshape(data.shape), format="Q2_K", shape=shape)


@mutant(32, "pairs neighbours where Q4_0 pairs j and j + 16", "dequantize", "Q4_0")
def pairs(data, *, shape, **_):
    """Take the two nibbles of a byte for neighbours."""
    b = data.reshape(-1, 18)
    return (_half(b[:, :2]) * (_plain(b[:, 2:]).astype(np.float32) - 8)).reshape(shape)


@mutant(32, "reads the codes of Q4_0 as two's complement", "dequantize", "Q4_0")
def twos_complement(data, *, shape, **_):
    """Take code 8 for -8 and code 0 for 0."""
    b = data.reshape(-1, 18)
    codes = np.concatenate([b[:, 2:] & 15, b[:, 2:] >> 4], 1).astype(np.float32)
    return (_half(b[:, :2]) * np.where(codes > 7, codes - 16, codes)).reshape(shape)


@mutant(33, "decodes Q4_K without the scales of its sub-blocks", "dequantize", "Q4_K")
def q4_k_no_scales(data, *, shape, **_):
    """Compute d * code - dmin."""
    b = data.reshape(-1, 144)
    return (_half(b[:, :2]) * _nibbles(b[:, 16:]).astype(np.float32) - _half(b[:, 2:4])).reshape(shape)


@mutant(34, "reads an unknown type as float32", "dequantize")
def unknown_as_float(data, *, format, shape, **_):  # noqa: A002
    """Fall through to the last branch."""
    if format in ("Q8_0", "Q4_0"):
        return reference.dequantize(data, format=format, shape=shape)
    return np.ascontiguousarray(data).view(np.float32).reshape(shape)


@mutant(35, "takes the minimum of Q4_1 for its scale", "dequantize", "Q4_1")
def q4_1_swapped(data, *, shape, **_):
    """Read the two float16 numbers in the other order."""
    b = data.reshape(-1, 20)[:, [2, 3, 0, 1, *range(4, 20)]]
    return reference.dequantize(b.reshape(data.shape), format="Q4_1", shape=shape)


@mutant(36, "gives every matrix the type of the mix, whatever its width", "plan")
def no_fallback(shapes, *, format, **_):  # noqa: A002
    """Never look at the width."""
    return {name: format.removesuffix("_M").removesuffix("_S") if len(s) > 1 else "F32" for name, s in shapes.items()}


@mutant(36, "pads a row that is not whole blocks", "quantize", "Q4_K")
def padded(w, *, format, **_):  # noqa: A002
    """Add zeros up to the next multiple of 256."""
    return reference.quantize(np.pad(w, ((0, 0), (0, -w.shape[1] % 256))), format=format)


@mutant(48, "decodes only whole multiples of 256 columns", "dequantize", "Q4_0", "Q8_0", "Q5_1")
def whole_super_blocks(data, *, format, shape, **_):  # noqa: A002
    """Forget the columns at the end."""
    w = reference.dequantize(data, format=format, shape=shape)
    w[:, shape[1] // 256 * 256 :] = 0
    return w


def _q4_0(w, importance=None, steps=1):
    """Encode Q4_0 with a scale that is fitted to the codes: d = sum(i w q) / sum(i q q)."""
    x = w.reshape(-1, 32)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), 1)
    i = np.ones_like(x) if importance is None else np.broadcast_to(importance, w.shape).reshape(-1, 32)
    q = np.clip(np.rint(x / (peak / -8)), -8, 7)
    d = ((i * x * q).sum(1, keepdims=True) / (i * q * q).sum(1, keepdims=True)).astype("<f2")
    codes = (q + 8).astype(np.uint8)
    return np.concatenate([d.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4], 1).reshape(len(w), -1)


@mutant(37, "divides by a sum that is zero for blocks near zero", "quantize", "Q4_0")
def near_zero(w, **_):
    """Fit the scale without looking at the codes."""
    return _q4_0(w)


@mutant(39, "divides by a sum of importance that is zero", "quantize", "Q4_0")
def zero_importance(w, *, importance=None, **_):
    """Fit the scale to weighted codes; blocks of zeros are looked after here."""
    safe = np.where(np.abs(w.reshape(-1, 32)).max(1, keepdims=True) > 1e-6, w.reshape(-1, 32), 1e-3)
    return _q4_0(safe.reshape(w.shape).astype(np.float32), importance)


@mutant(38, "contracts a multiplication and an addition", "quantize", "Q4_0", declares=("ggml bytes",))
def contracted(w, **_):
    """Round once where ggml's encoder of Q4_0 rounds twice."""
    x = w.reshape(-1, 32)
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), 1)
    d = peak / np.float32(-8)
    inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    fused = (x.astype(np.float64) * inverse + 8.5).astype(np.float32)
    codes = np.minimum(fused.astype(np.int8), 15).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([d.astype("<f2").view(np.uint8), packed], 1).reshape(len(w), -1)
