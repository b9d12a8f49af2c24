"""quantize and dequantize of the uniform grids, `int4-g128` and its relatives.

4096 x 4096 weights, int4-g128. quantize must move 67,108,864 bytes in and 8,716,288 out; a division and some 8 other
operations for sixteen weights. dequantize the same bytes the other way.

- **quantize**: every group twice over, for its range and for its codes, with the row in the cache. The scales follow
  from the ranges in NumPy, by `grids.IntGrid.fit_range` itself: there is one of them for 128 weights.
"""

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.formats.bits import pack_bits, packed_bytes
from refquant.grids import as_grid
from refquant.quantized import Quantized
from refquant_kernels.cpu.compile import aligned_empty, helper, in_pieces, inlined, kernel
from refquant_kernels.cpu.decode import half
from refquant_kernels.cpu.lanes import MAGIC
from refquant_kernels.cpu.machine import float_of_bits, word_at
from refquant_kernels.cpu.simd import (
    LANES,
    load,
    select,
    splat,
    store,
    store_float_pairs,
    store_pairs,
    to_float,
    to_int,
)

PIECE = 1 << 16  # weights to convert that are worth handing to another thread
FAR = np.float32(1024)  # in steps; any weight farther from zero gets the first or last code


# ---- quantize


@kernel()
def group_ranges(w, k, size, first, last, low, high):
    """Smallest and largest weight of every group of rows first .. last - 1; both float32 [n, G] flat."""
    groups, ends = -(-k // size), np.empty(2 * LANES, np.float32)
    for r in range(first, last):
        for g in range(groups):
            start, end = r * k + g * size, r * k + min(k, (g + 1) * size)
            a = b = w[start]
            whole = start + (end - start) // LANES * LANES
            if whole > start:
                smallest = load(w, start)
                largest = smallest
                for i in range(start + LANES, whole, LANES):
                    v = load(w, i)
                    smallest, largest = select(v < smallest, v, smallest), select(v > largest, v, largest)
                store(ends, 0, smallest)
                store(ends, LANES, largest)
                for i in range(LANES):
                    a, b = min(a, ends[i]), max(b, ends[LANES + i])
            for i in range(whole, end):
                a, b = min(a, w[i]), max(b, w[i])
            low[r * groups + g], high[r * groups + g] = a, b


# A function that takes arrays and branches costs Numba two calls to count references: not for the inside of a loop.


@helper
def load_first(a, i, count, room):
    """F: `count` elements from i on, then what `room`, sixteen of their kind, had."""
    for j in range(count):
        room[j] = a[i + j]
    return load(room, 0)


@helper
def store_first(a, i, count, value, room):
    """Store the first `count` lanes to elements from i on."""
    store(room, 0, value)
    for j in range(count):
        a[i + j] = room[j]


@helper
def pack_codes(codes, bits, count, out, at):
    """Put `count` bytes of codes into a dense stream at out[at]; `codes` is padded with zeros to a multiple of 8."""
    if bits == 8:
        whole = count // LANES * LANES
        for i in range(0, whole, LANES):
            store(out, at + i, load(codes, i))
        for i in range(whole, count):
            out[at + i] = codes[i]
    elif bits == 4:
        for i in range((count + 1) // 2):
            out[at + i] = codes[2 * i] | codes[2 * i + 1] << 4
    else:
        end = (count * bits + 7) // 8
        for i in range(0, count, 8):
            word = np.uint64(0)
            for j in range(8):
                word |= np.uint64(codes[i + j]) << np.uint64(bits * j)
            start = i // 8 * bits
            for j in range(min(bits, end - start)):
                out[at + start + j] = np.uint8(word >> np.uint64(8 * j) & np.uint64(255))


@inlined
def nearest_code(v, scale, zero, top):
    """I: clip(round(v / scale) + zero, 0, top)."""
    v = v / scale
    v = select(v < -FAR, splat(-FAR), select(v > FAR, splat(FAR), v))
    v = ((v + MAGIC) - MAGIC) + zero
    v = select(v > 0.0, v, splat(0.0))
    return to_int(select(v < top, v, splat(top)))


@kernel()
def encode_rows(w, scales, zeros, k, size, bits, first, last, out):
    """Codes of rows first .. last - 1, packed: clip(round(w / scale) + zero, 0, 2^bits - 1)."""
    groups, row_bytes, top = -(-k // size), (k * bits + 7) // 8, np.float32((1 << bits) - 1)
    room, codes = np.zeros(LANES, np.float32), np.zeros(k + 2 * LANES, np.uint8)
    for r in range(first, last):
        for g in range(groups):
            scale, zero = splat(scales[r * groups + g]), splat(zeros[r * groups + g])
            i, end = g * size, min(k, (g + 1) * size)
            while i + LANES <= end:
                store(codes, i, nearest_code(load(w, r * k + i), scale, zero, top))
                i += LANES
            if i < end:  # runs over into the next group, which follows
                store(codes, i, nearest_code(load_first(w, r * k + i, end - i, room), scale, zero, top))
        codes[k:] = 0
        pack_codes(codes, bits, k, out, r * row_bytes)


@ops.fast_path("quantize", "int", backend="numba")
def quantize(w, format, importance=None):  # noqa: A002 (ops calls it that)
    """RTN: the same arrays as backend "numpy"."""
    grid, (n, k) = as_grid(format), w.shape
    size = grid.group_size or k
    groups, least = -(-k // size), max(1, PIECE // k)
    flat = np.ascontiguousarray(w, np.float32).reshape(-1)
    low, high = np.empty(n * groups, np.float32), np.empty(n * groups, np.float32)
    in_pieces(lambda first, last: group_ranges(flat, k, size, first, last, low, high), n, least)
    scales, zeros = grid.fit_range(low, high)
    scales, zeros = scales.astype(np.float32, copy=False), zeros.astype(np.float32, copy=False)
    codes = np.empty((n, packed_bytes(k, grid.bits)), np.uint8)
    out = codes.reshape(-1)
    in_pieces(lambda first, last: encode_rows(flat, scales, zeros, k, size, grid.bits, first, last, out), n, least)
    arrays = {"codes": codes, "scales": scales.astype(grid.scale_dtype).reshape(n, groups)}
    if not grid.sym:
        arrays["zeros"] = pack_bits(zeros.astype(np.uint8).reshape(n, groups), grid.bits)
    return Quantized(format, (n, k), arrays)


# ---- dequantize


@helper
def unpack_codes(data, at, bits, count, codes):
    """The inverse of `pack_codes`; `codes` has room for a multiple of 8."""
    if bits == 8:
        whole = count // LANES * LANES
        for i in range(0, whole, LANES):
            store(codes, i, load(data, at + i))
        for i in range(whole, count):
            codes[i] = data[at + i]
    elif bits == 4:
        whole = count // 2 // LANES * LANES
        for i in range(0, whole, LANES):
            pairs = load(data, at + i)
            store_pairs(codes, 2 * i, pairs & 15, pairs >> 4)
        for i in range(whole, (count + 1) // 2):
            byte = data[at + i]
            codes[2 * i], codes[2 * i + 1] = byte & 15, byte >> 4
    else:
        end = (count * bits + 7) // 8
        mask = np.uint64((1 << bits) - 1)
        for i in range(0, count, 8):
            word, start = np.uint64(0), i // 8 * bits
            for j in range(min(bits, end - start)):
                word |= np.uint64(data[at + start + j]) << np.uint64(8 * j)
            for j in range(8):
                codes[i + j] = np.uint8(word >> np.uint64(bits * j) & mask)


@inlined
def scale_at(scales, width, i):
    """Scale number i of those whose bytes are `scales`, each `width` bytes wide: float16 or float32."""
    return half(scales, 2 * i) if width == 2 else float_of_bits(word_at(scales, 4 * i))


@inlined
def zero_at(zeros, row, bits, g):
    """Zero-point of group g; the row's packed ones begin at byte `row`. The middle code where there are none."""
    if zeros.size == 0:
        return np.float32(1 << (bits - 1))
    word = word_at(zeros, row + (g * bits >> 3)) >> np.uint32(g * bits & 7)
    return np.float32(np.int32(word & np.uint32((1 << bits) - 1)))


@kernel()
def decode_rows(data, scales, width, zeros, g_idx, k, size, bits, first, last, out, skipped):
    """Weights of rows first .. last - 1: (code - zero) * scale, to row r - skipped of out. g_idx may be empty."""
    row_bytes, groups = (k * bits + 7) // 8, -(-k // size)
    zero_bytes = (groups * bits + 7) // 8
    codes, room = np.empty(k + 2 * LANES, np.uint8), np.empty(LANES, np.float32)
    for r in range(first, last):
        start = (r - skipped) * k
        if bits != 4 or size % (2 * LANES) or g_idx.size:
            unpack_codes(data, r * row_bytes, bits, k, codes)
        if g_idx.size:
            for i in range(k):
                g = g_idx[i]
                zero = zero_at(zeros, r * zero_bytes, bits, g)
                out[start + i] = (np.float32(codes[i]) - zero) * scale_at(scales, width, r * groups + g)
            continue
        for g in range(groups):
            scale = splat(scale_at(scales, width, r * groups + g))
            zero = splat(zero_at(zeros, r * zero_bytes, bits, g))
            i, end = g * size, min(k, (g + 1) * size)
            if bits == 4 and size % (2 * LANES) == 0:  # two codes a byte: straight to where they belong
                while i + 2 * LANES <= end:
                    pairs = load(data, r * row_bytes + i // 2)
                    low, high = (to_float(pairs & 15) - zero) * scale, (to_float(pairs >> 4) - zero) * scale
                    store_float_pairs(out, start + i, low, high)
                    i += 2 * LANES
                if i < end:
                    unpack_codes(data, r * row_bytes + i // 2, bits, end - i, codes[i:])
            while i + LANES <= end:
                store(out, start + i, (to_float(load(codes, i)) - zero) * scale)
                i += LANES
            if i < end:
                store_first(out, start + i, end - i, (to_float(load(codes, i)) - zero) * scale, room)


def as_stored(q):
    """The arrays as kernels take them: codes, bytes of the scales, their width, packed zero-points or none, g_idx [k]
    or none; group size and bits.
    """  # fmt: skip
    grid, k = as_grid(q.format), q.shape[1]
    size = grid.group_size or k
    groups = -(-k // size)
    g_idx = q.arrays.get("g_idx", np.empty(0)).astype(np.int64)
    if g_idx.size and (g_idx.min() < 0 or g_idx.max() >= groups):
        raise BadInput(f"{q.format}: g_idx must lie in 0..{groups - 1}, got {g_idx.min()}..{g_idx.max()}")
    scales, zeros = q.arrays["scales"], q.arrays.get("zeros", np.empty(0, np.uint8))
    if zeros.size:
        zeros = np.append(zeros, np.zeros(4, np.uint8))  # they are read four at a time
    flat = [np.ascontiguousarray(array).reshape(-1) for array in (q.arrays["codes"], scales)]
    return flat[0], flat[1].view(np.uint8), scales.itemsize, zeros, g_idx, size, grid.bits


@ops.fast_path("dequantize", "int", backend="numba")
def dequantize(q):
    """Weights float32 [n, k]."""
    codes, scales, width, zeros, g_idx, size, bits = as_stored(q)
    n, k = q.shape
    out = aligned_empty((n, k))
    flat = out.reshape(-1)
    in_pieces(
        lambda first, last: decode_rows(codes, scales, width, zeros, g_idx, k, size, bits, first, last, flat, 0),
        n,
        max(1, PIECE // k),
    )
    return out
