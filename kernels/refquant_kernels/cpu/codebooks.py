"""quantize, dequantize and matmul of NF4 and of FP8: codes that stand for unevenly spaced values.

4096 x 4096 weights. NF4: quantize must move 67,108,864 bytes in and 9,437,184 out, dequantize the same the other way,
matmul with one token reads the 9,437,184: at 18 GB/s 0.52 ms. FP8: 16,777,216 bytes of codes in place of them: 0.93 ms.

- **NF4 codes**: the level is the number of midpoints that a weight lies above: fifteen comparisons, added up, sixteen
  weights at a time. Decoding is one look-up in a register (`machine.pick`).
- **FP8 codes** are float32 with fewer bits: shifted into place and multiplied by a power of two, which makes the
  smaller exponents right, and is exact, subnormals included. Encoding is the same backwards, rounding by an addition.
- **matmul, a token or a few**: decoded in registers, multiplied, and the scale of a group applied to its sum.
- **matmul, many tokens**: decode a panel of rows, multiply it (`gemm`).
"""

import numpy as np

from refquant import ops
from refquant.codebooks import NF4
from refquant.grids import as_grid
from refquant.quantized import Quantized
from refquant_kernels.cpu.compile import PRODUCT, aligned, aligned_empty, in_pieces, inlined, kernel
from refquant_kernels.cpu.gemm import by_panels
from refquant_kernels.cpu.int_grids import PIECE, group_ranges, load_first, store_first
from refquant_kernels.cpu.machine import pick, prefetch, sum_lanes
from refquant_kernels.cpu.matmul_grids import out_of_order
from refquant_kernels.cpu.products import FEW
from refquant_kernels.cpu.simd import (
    LANES,
    bits,
    fma,
    from_bits,
    load,
    load_halves,
    load_signed,
    select,
    shift_right,
    splat,
    splat_int,
    store,
    store_float_pairs,
)

AHEAD = 4096  # bytes
f32, i32 = np.float32, np.int32
LEAST = f32(1e-38)  # as `methods.nf4`


def peaks(flat, k, size, rows):
    """Largest magnitude of every group of `size` weights in rows of k, float32 [rows * groups]."""
    low, high = (np.empty(rows * -(-k // size), np.float32) for _ in range(2))
    in_pieces(lambda a, b: group_ranges(flat, k, size, a, b, low, high), rows, max(1, PIECE // k))
    return np.abs(np.maximum(-low, high))


# ---- NF4: blocks through the flattened matrix; two codes a byte, the first in the high half

BETWEEN = (NF4.values[:-1] + NF4.values[1:]) / f32(2)


@kernel()
def nf4_encode(w, inverses, block, between, first, last, out):
    """Blocks first .. last - 1 of `block` weights, a multiple of 32."""
    codes = np.empty(block, np.uint8)
    for b in range(first, last):
        inverse = splat(inverses[b])
        for i in range(0, block, LANES):
            v, code = load(w, b * block + i) * inverse, splat_int(0)
            for j in range(15):
                code = code + select(v > between[j], splat_int(1), splat_int(0))
            store(codes, i, code)
        for i in range(0, block, 2 * LANES):
            pairs = load_halves(codes, i)
            store(out, (b * block + i) // 2, ((pairs & 15) << 4) | (pairs >> 8))


@kernel()
def nf4_decode(data, scales, block, table, first, last, out):
    """Blocks first .. last - 1, to block b - first of out."""
    values = load(table, 0)
    for b in range(first, last):
        scale = splat(scales[b])
        for i in range(0, block, 2 * LANES):
            pairs = load(data, (b * block + i) // 2)
            store_float_pairs(
                out, (b - first) * block + i, pick(values, pairs >> 4) * scale, pick(values, pairs) * scale
            )


@kernel()
def nf4_rows(x, data, scales, block, table, first, last, out):
    """out[t, r] for all tokens and rows first .. last - 1, of whole blocks; x with its columns out of order."""
    k = x.shape[1]
    values = load(table, 0)
    for t in range(x.shape[0]):
        tokens = x[t]
        for r in range(first, last):
            total = splat(0.0)
            for g in range(k // block):
                high, low = splat(0.0), splat(0.0)
                for i in range(g * block, (g + 1) * block, 2 * LANES):
                    at = (r * k + i) // 2
                    pairs = load(data, at)
                    prefetch(data, at + AHEAD)
                    high = fma(pick(values, pairs >> 4), load(tokens, i), high)
                    low = fma(pick(values, pairs), load(tokens, i + LANES), low)
                total = fma(high + low, splat(scales[r * (k // block) + g]), total)
            out[t, r] = sum_lanes(total)


@ops.fast_path("quantize", "nf4", backend="numba")
def quantize_nf4(w, format, importance=None):  # noqa: A002 (ops calls it that)
    """The same arrays as backend "numpy"."""
    grid, flat = as_grid(format), np.ascontiguousarray(w, np.float32).reshape(-1)
    block = grid.group_size
    whole, rest = flat.size // block, flat.size % block
    absmax = peaks(flat, block, block, whole)
    if rest:  # zeros after it; where the count is odd, the code that stands there is that of 0
        last = np.append(flat[-rest:], np.zeros(block - rest, np.float32))
        absmax = np.append(absmax, np.abs(last).max())
    inverses = f32(1) / np.maximum(absmax, LEAST)
    out = np.empty(-(-flat.size // block) * block // 2, np.uint8)
    in_pieces(lambda a, b: nf4_encode(flat, inverses, block, BETWEEN, a, b, out), whole, max(1, PIECE // block))
    if rest:
        nf4_encode(last, inverses[-1:], block, BETWEEN, 0, 1, out[whole * block // 2 :])
    others = grid.fields(np.zeros((1, block), np.uint8), absmax, np.zeros(0))
    arrays = {name: array for name, array in others.items() if name != "codes"}
    return Quantized(format, w.shape, arrays | {"weight": out[: -(-flat.size // 2)].reshape(-1, 1)})


def nf4_parts(q):
    """Bytes in whole blocks, float32 scales, weights a block, the sixteen values."""
    grid, arrays, count = as_grid(q.format), q.arrays, q.shape[0] * q.shape[1]
    scale = arrays["absmax"]
    if grid.nested:  # as `formats.nf4.decode`
        nested = np.repeat(arrays["nested_absmax"], 256)[: len(scale)]
        scale = arrays["nested_quant_map"][scale] * nested + arrays["nested_offset"]
    data, block = np.ascontiguousarray(arrays["weight"]).reshape(-1), grid.group_size
    if count % block:
        data = np.append(data, np.zeros(-(-count // block) * block // 2 - data.size, np.uint8))
    return data, np.ascontiguousarray(scale, np.float32), block, np.ascontiguousarray(arrays["quant_map"])


@ops.fast_path("dequantize", "nf4", backend="numba")
def dequantize_nf4(q):
    """Weights float32 [n, k]."""
    data, scales, block, table = nf4_parts(q)
    out = aligned_empty((len(scales) * block,))

    def run(first, last):
        nf4_decode(data, scales, block, table, first, last, out[first * block :])

    in_pieces(run, len(scales), max(1, PIECE // block))
    return out[: q.shape[0] * q.shape[1]].reshape(q.shape)


def prepare_nf4(q):
    """Return matmul as a function of x [..., k] alone: float32 [..., n]."""
    n, k = q.shape
    data, scales, block, table = nf4_parts(q)

    def decode(first, last, panel):
        nf4_decode(data, scales, block, table, first * k // block, last * k // block, panel)

    def multiply(x):
        tokens = np.ascontiguousarray(x, np.float32).reshape(-1, k)
        out = np.empty((len(tokens), n), np.float32)
        if k % block:
            np.matmul(tokens, dequantize_nf4(q).T, out=out)
        elif 0 < len(tokens) <= FEW:
            ordered = aligned(out_of_order(tokens, 2))
            in_pieces(lambda a, b: nf4_rows(ordered, data, scales, block, table, a, b, out), n, max(1, PRODUCT // k))
        elif len(tokens):
            by_panels(tokens, n, decode, out)
        return out.reshape(*np.shape(x)[:-1], n)

    return multiply


@ops.fast_path("matmul", "nf4", backend="numba")
def matmul_nf4(x, q):
    """X [..., k] -> float32 [..., n]."""
    return prepare_nf4(q)(x)


ops.find_op("matmul", "nf4").prepare["numba"] = prepare_nf4


# ---- FP8

INFINITY = 0x7F80_0000


def fp8_layout(codebook):
    """What the kernels need of a small float: fraction bits; 2^(127 - bias); from which bits on it is infinity or NaN
    (none if beyond all); which bits are NaN besides.
    """  # fmt: skip
    shift = 23 - codebook.fraction_bits
    limit = {"fn": 0x7F, "ieee": 0x7C, "fnuz": 0x80}[codebook.special]
    alone = -0x8000_0000 if codebook.special == "fnuz" else 1
    return codebook.fraction_bits, f32(2.0 ** (127 - codebook.bias)), np.int64(limit << shift), np.int64(alone)


@inlined
def fp8_value(data, at, fraction, power, limit, alone):
    """F: sixteen small floats from byte `at`."""
    shift = 23 - fraction
    b = (load_signed(data, at) << shift) & (i32(-0x8000_0000) | i32(0x7F << shift))
    special = ((b & 0x7FFF_FFFF) >= limit) | (b == alone)
    return select(special, from_bits(b | (INFINITY | 0x0040_0000 * (alone < 0))), from_bits(b) * power)


@inlined
def fp8_code(v, fraction, lowest, magic, largest, fnuz):
    """I: codes of the nearest small floats, ties to the even code, saturating."""
    shift = 23 - fraction
    size_bits = bits(v) & 0x7FFF_FFFF
    a = from_bits(size_bits)
    odd = shift_right(size_bits, splat_int(shift)) & 1
    normal = shift_right(size_bits + (odd + i32((1 << (shift - 1)) - 1)), splat_int(shift)) - lowest
    code = select(normal < i32(1 << fraction), bits(a + magic) - bits(splat(magic)), normal)
    code = select(code > largest, splat_int(largest), code)
    sign = shift_right(bits(v), splat_int(24)) & 0x80
    if fnuz:
        sign = select(code == 0, splat_int(0), sign)
    return code | sign


@kernel()
def fp8_encode(w, scales, shared, k, size, fraction, bias, largest, fnuz, first, last, out):
    """Codes of rows first .. last - 1: nearest(w / scale)."""
    groups = -(-k // size)
    room, codes = np.zeros(LANES, np.float32), np.empty(LANES, np.uint8)
    lowest = i32((127 - bias) << fraction)
    magic = f32(2.0 ** (24 - bias - fraction))  # its last place is the step of the subnormals
    for r in range(first, last):
        for g in range(groups):
            scale = splat(scales[r // shared * groups + g])
            i, end = r * k + g * size, r * k + min(k, (g + 1) * size)
            while i + LANES <= end:
                store(out, i, fp8_code(load(w, i) / scale, fraction, lowest, magic, largest, fnuz))
                i += LANES
            if i < end:
                v = load_first(w, i, end - i, room) / scale
                store_first(out, i, end - i, fp8_code(v, fraction, lowest, magic, largest, fnuz), codes)


@kernel()
def fp8_decode(data, scales, shared, k, size, fraction, power, limit, alone, first, last, out):
    """Weights of rows first .. last - 1, to row r - first of out."""
    groups = -(-k // size)
    room, codes = np.empty(LANES, np.float32), np.zeros(LANES, np.uint8)
    for r in range(first, last):
        for g in range(groups):
            scale, i, end = splat(scales[r // shared * groups + g]), r * k + g * size, r * k + min(k, (g + 1) * size)
            while i + LANES <= end:
                store(out, i - first * k, fp8_value(data, i, fraction, power, limit, alone) * scale)
                i += LANES
            if i < end:
                for j in range(end - i):
                    codes[j] = data[i + j]
                v = fp8_value(codes, 0, fraction, power, limit, alone) * scale
                store_first(out, i - first * k, end - i, v, room)


@kernel()
def fp8_rows(x, data, scales, shared, size, fraction, power, limit, alone, first, last, out):
    """out[t, r] for all tokens and rows first .. last - 1; `size` and k are multiples of 16."""
    k = x.shape[1]
    groups = -(-k // size)
    for t in range(x.shape[0]):
        tokens = x[t]
        for r in range(first, last):
            total = splat(0.0)
            for g in range(groups):
                part = splat(0.0)
                for i in range(g * size, min(k, (g + 1) * size), LANES):
                    prefetch(data, r * k + i + AHEAD)
                    part = fma(fp8_value(data, r * k + i, fraction, power, limit, alone), load(tokens, i), part)
                total = fma(part, splat(scales[r // shared * groups + g]), total)
            out[t, r] = sum_lanes(total)


@ops.fast_path("quantize", "fp8", backend="numba")
def quantize_fp8(w, format, importance=None):  # noqa: A002 (ops calls it that)
    """The same arrays as backend "numpy"."""
    grid, (n, k) = as_grid(format), w.shape
    size, flat = grid.group_size or k, np.ascontiguousarray(w, np.float32).reshape(-1)
    scales = grid.scales(peaks(flat, k, size, n).reshape(n, -1))
    codes, book = np.empty((n, k), np.uint8), grid.codebook
    layout = book.fraction_bits, book.bias, i32(len(book.magnitudes) - 1), book.special == "fnuz"
    every, out = np.ascontiguousarray(scales).reshape(-1), codes.reshape(-1)
    in_pieces(lambda a, b: fp8_encode(flat, every, 1, k, size, *layout, a, b, out), n, max(1, PIECE // k))
    return ops.pack(grid.fields(codes, scales, None), format, (n, k))


def fp8_parts(q):
    """Codes and scales, flat; how many rows share scales; columns of a group; what `fp8_layout` gives."""
    grid, (n, k) = as_grid(q.format), q.shape
    (scales,) = (array for name, array in q.arrays.items() if name != "weight")
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (q.arrays["weight"], scales)]
    return *flat, grid.rows or n, grid.group_size or k, fp8_layout(grid.codebook)


@ops.fast_path("dequantize", "fp8", backend="numba")
def dequantize_fp8(q):
    """Weights float32 [n, k]."""
    data, scales, shared, size, layout = fp8_parts(q)
    (n, k), out = q.shape, aligned_empty(q.shape)

    def run(first, last):
        fp8_decode(data, scales, shared, k, size, *layout, first, last, out.reshape(-1)[first * k :])

    in_pieces(run, n, max(1, PIECE // k))
    return out


def prepare_fp8(q):
    """Return matmul, with x as it is (weight-only), as a function of x [..., k] alone: float32 [..., n]."""
    data, scales, shared, size, layout = fp8_parts(q)
    n, k = q.shape

    def decode(first, last, panel):
        fp8_decode(data, scales, shared, k, size, *layout, first, last, panel)

    def multiply(x):
        tokens = aligned(np.asarray(x).reshape(-1, k))
        out = np.empty((len(tokens), n), np.float32)
        if 0 < len(tokens) <= FEW // 2 and k % LANES == 0:  # decoding takes longer than of others

            def rows(first, last):
                fp8_rows(tokens, data, scales, shared, size, *layout, first, last, out)

            in_pieces(rows, n, max(1, PRODUCT // k))
        elif len(tokens):
            by_panels(tokens, n, decode, out)
        return out.reshape(*np.shape(x)[:-1], n)

    return multiply


@ops.fast_path("matmul", "fp8", backend="numba")
def matmul_fp8(x, q):
    """X [..., k] -> float32 [..., n]."""
    return prepare_fp8(q)(x)


ops.find_op("matmul", "fp8").prepare["numba"] = prepare_fp8
