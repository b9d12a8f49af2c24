"""quantize, dequantize and matmul of the uniform grids, `int4-g128` and its relatives.

4096 x 4096 weights, int4-g128. quantize must move 67,108,864 bytes in and 8,716,288 out; a division and some 8 other
operations for sixteen weights. dequantize the same bytes the other way. matmul with one token must move the 8,716,288
bytes: at 18 GB/s 0.48 ms; 33.6 MFLOP.

- **quantize**: every group twice over, for its range and for its codes, with the row in the cache. The scales follow
  from the ranges in NumPy, by `grids.IntGrid.fit_range` itself: there is one of them for 128 weights.
- **matmul, a token or a few**: codes that share a byte, or a word, are neighbours in the row, so a vector of words
  gives every eighth code with one shift. Instead of putting them in order, the activations are put out of order, once.
  Products are summed as code * x, and the zero-point is settled once a group: minus zero * sum(x).
- **matmul, many tokens**: decode a panel of rows, multiply by BLAS.
"""

import numpy as np

from refquant import ops
from refquant.errors import BadInput
from refquant.formats.bits import pack_bits, packed_bytes
from refquant.grids import as_grid
from refquant.quantized import Quantized
from refquant_kernels.cpu.compile import PRODUCT, aligned, helper, in_pieces, inlined, kernel, specialized
from refquant_kernels.cpu.decode import four_bits, half, sixteen_halves, two_bits
from refquant_kernels.cpu.lanes import MAGIC
from refquant_kernels.cpu.machine import float_of_bits, load_words, prefetch, sum_lanes, word_at
from refquant_kernels.cpu.simd import (
    LANES,
    fma,
    lane_numbers,
    load,
    select,
    shift_right,
    splat,
    splat_int,
    store,
    store_float_pairs,
    store_pairs,
    to_float,
    to_int,
)

FEW = 4  # tokens up to which rows are decoded in registers
PIECE = 1 << 16  # weights to convert that are worth handing to another thread
PANEL = 1 << 19  # weights decoded for one call of BLAS: 2 MB
AHEAD = 4096  # bytes
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
    out = np.empty((n, k), np.float32)
    flat = out.reshape(-1)
    in_pieces(
        lambda first, last: decode_rows(codes, scales, width, zeros, g_idx, k, size, bits, first, last, flat, 0),
        n,
        max(1, PIECE // k),
    )
    return out


# ---- matmul


@inlined
def sixteen_nibbles(data, at):
    """F: sixteen numbers of 4 bits from byte `at`, the lower half of each byte first."""
    lane = lane_numbers()
    first, second = splat_int(np.int32(word_at(data, at))), splat_int(np.int32(word_at(data, at + 4)))
    return to_float(shift_right(select(lane < 8, first, second), (lane & 7) << 2) & 15)


BITS = None  # given by `specialized`: bits a code


def _dot_rows(x, sums, data, scales, width, zeros, size, first, last, out):
    """out[t, r] for all tokens and rows first .. last - 1; codes of 2, 4 or 8 bits, whole bytes of vectors in a group.

    x [m, k] with its columns out of order (`out_of_order`); sums [m, G], the sums of x over each group.
    """
    k, groups, planes = x.shape[1], sums.shape[1], 8 // BITS
    row_bytes, group_bytes, zero_bytes = k // planes, size // planes, (groups * BITS + 7) // 8
    for t in range(x.shape[0]):
        tokens, sums_of_token = x[t], sums[t]
        for r in range(first, last):
            total, zero_part = splat(0.0), np.float32(0)
            for g in range(groups):
                start, column = r * row_bytes + g * group_bytes, g * size
                even, odd = splat(0.0), splat(0.0)
                for b in range(start, start + group_bytes, LANES):
                    prefetch(data, b + AHEAD)
                    codes = load(data, b)
                    if BITS == 8:
                        even = fma(to_float(codes), load(tokens, column), even)
                    elif BITS == 4:
                        even = fma(four_bits(codes), load(tokens, column), even)
                        odd = fma(four_bits(codes >> 4), load(tokens, column + LANES), odd)
                    else:
                        even = fma(two_bits(codes), load(tokens, column), even)
                        odd = fma(two_bits(codes >> 2), load(tokens, column + LANES), odd)
                        even = fma(two_bits(codes >> 4), load(tokens, column + 2 * LANES), even)
                        odd = fma(two_bits(codes >> 6), load(tokens, column + 3 * LANES), odd)
                    column += LANES * planes
                scale = scale_at(scales, width, r * groups + g)
                total = fma(splat(scale), even + odd, total)
                zero_part += scale * zero_at(zeros, r * zero_bytes, BITS, g) * sums_of_token[g]
            out[t, r] = sum_lanes(total) - zero_part


@inlined
def of_words(codes, x, column):
    """F: in each lane its eight codes of 4 bits times eight activations; a shift brings the next code down."""
    even, odd = four_bits(codes) * load(x, column), four_bits(codes >> 4) * load(x, column + LANES)
    even = fma(four_bits(codes >> 8), load(x, column + 2 * LANES), even)
    odd = fma(four_bits(codes >> 12), load(x, column + 3 * LANES), odd)
    even = fma(four_bits(codes >> 16), load(x, column + 4 * LANES), even)
    odd = fma(four_bits(codes >> 20), load(x, column + 5 * LANES), odd)
    even = fma(four_bits(codes >> 24), load(x, column + 6 * LANES), even)
    return fma(four_bits(codes >> 28), load(x, column + 7 * LANES), odd) + even


@kernel()
def dot_words(x, sums, data, scales, width, zeros, size, first, last, out):
    """As `_dot_rows`, codes of 4 bits in groups of whole 64 bytes: not spread to a lane each, all through the one port
    that shuffles; and the zero-points of sixteen groups settled together, where scales are float16.
    """  # fmt: skip
    k, groups = x.shape[1], sums.shape[1]
    row_bytes, group_bytes, zero_bytes = k // 2, size // 2, (groups + 1) // 2
    together = groups // LANES * LANES if width == 2 and zeros.size else 0
    for t in range(x.shape[0]):
        tokens, sums_of_token = x[t], sums[t]
        for r in range(first, last):
            total, rest, zero_part = splat(0.0), splat(0.0), np.float32(0)
            for g in range(0, together, LANES):
                zero = sixteen_nibbles(zeros, r * zero_bytes + g // 2)
                rest = fma(sixteen_halves(scales, 2 * (r * groups + g)) * zero, load(sums_of_token, g), rest)
            for g in range(together, groups):
                scale = scale_at(scales, width, r * groups + g)
                zero_part += scale * zero_at(zeros, r * zero_bytes, 4, g) * sums_of_token[g]
            for g in range(groups):
                scale, at, column = scale_at(scales, width, r * groups + g), r * row_bytes + g * group_bytes, g * size
                prefetch(data, at + AHEAD)
                part = of_words(load_words(data, at), tokens, column)
                for b in range(64, group_bytes, 64):
                    prefetch(data, at + b + AHEAD)
                    part = part + of_words(load_words(data, at + b), tokens, column + 2 * b)
                total = fma(splat(scale), part, total)
            out[t, r] = sum_lanes(total - rest) - zero_part


DOT_ROWS = {bits: specialized(_dot_rows, f"matmul_int{bits}", BITS=bits) for bits in (2, 4, 8)}


def out_of_order(x, planes):
    """Columns of x [m, k] as sixteen lanes of `planes` codes give them: the lanes' first codes, then their second."""
    m, k = x.shape
    return x.reshape(m, k // (LANES * planes), LANES, planes).swapaxes(2, 3).reshape(m, k)


def prepare(q):
    """Return matmul as a function of x [..., k] alone: float32 [..., n]."""
    codes, scales, width, zeros, g_idx, size, bits = as_stored(q)
    n, k = q.shape
    step, groups = LANES * 8 // bits if bits in (2, 4, 8) else 0, -(-k // size)
    in_registers = step and size % step == 0 and k % size == 0 and not g_idx.size
    words = bits == 4 and size % 128 == 0
    dot, planes = (dot_words, 8) if words else (DOT_ROWS.get(bits), 8 // bits)

    def multiply(x):
        tokens = np.ascontiguousarray(x, np.float32).reshape(-1, k)
        m = len(tokens)
        out = np.empty((m, n), np.float32)
        if in_registers and 0 < m <= FEW:
            ordered, sums = aligned(out_of_order(tokens, planes)), tokens.reshape(m, groups, size).sum(axis=2)
            in_pieces(
                lambda a, b: dot(ordered, sums, codes, scales, width, zeros, size, a, b, out), n, max(1, PRODUCT // k)
            )
        elif m:
            rows = max(1, PANEL // k)
            panel = np.empty((min(rows, n), k), np.float32)
            flat = panel.reshape(-1)
            for first in range(0, n, rows):
                count = min(rows, n - first)

                def decode(a, b, first=first):
                    decode_rows(codes, scales, width, zeros, g_idx, k, size, bits, first + a, first + b, flat, first)

                in_pieces(decode, count, max(1, PIECE // k))
                np.matmul(tokens, panel[:count].T, out=out[:, first : first + count])
        return out.reshape(*np.shape(x)[:-1], n)

    return multiply


@ops.fast_path("matmul", "int", backend="numba")
def matmul(x, q):
    """X [..., k] -> float32 [..., n]."""
    return prepare(q)(x)


ops.find_op("matmul", "int").prepare["numba"] = prepare
